// One row of logits as a distribution: what is drawn from it, what the logprob of a token is, and the slope of that.
//
//     z_i = (x_i - peak) * (1 / T)     peak: the largest logit; the reciprocal is rounded once, to fp32
//     w_i = exp(z_i)                   fp32, the exponential of lanes.h: 0 below z = -87.3
//     S   = sum of w_i                 fp32 within a block of kSpan entries, double over blocks, both in fixed order
//     logprob_c = fp32(z_c - log S)    in double, rounded once
//
// Sampler and trainer call the same functions, so a token has one logprob. Where a support is kept, its entries are laid
// side by side, ascending by id, and are a row of their own. A row is worked on by one thread.
#pragma once

#include <cstdint>
#include <vector>

namespace lockstep {

constexpr int64_t kSpan = 512; // entries of one partial sum

struct Total {
  float peak;
  double sum;    // of w
  double moment; // of w * z, if asked for: the entropy is log S - moment / S
};

// How one row is drawn from.
struct Draw {
  float scale; // 1 / temperature
  double uniform;
  bool greedy, truncates;
  int64_t top_k; // 0: all
  double top_p;
  float min_p;
};

struct Logits {
  const float* data; // [N, V]
  int64_t N, V, stride;
};

// What the sampler kept: row n kept ids[offsets[n] .. offsets[n + 1]); without ids, everything.
struct Kept {
  const int32_t* ids = nullptr;
  const int64_t* offsets = nullptr;
};

struct Drawn {
  int64_t* ids;
  float* logprobs;
  std::vector<std::vector<int32_t>> kept; // of rows that truncate
};

void draw(const Logits& logits, const Draw* how, Drawn& drawn);

// Logprob and entropy in nats of ids [N]; totals [N, 2]: peak and S, for the slope.
void score(const Logits& logits, const int64_t* ids, float scale, const Kept& kept, float* logprobs, float* entropy,
           double* totals);

// d (sum of grad * logprob) / d logits [N, V], in fp32 or rounded to bfloat16.
template <typename T>
void slope(const Logits& logits, const int64_t* ids, float scale, const Kept& kept, const double* totals,
           const float* grad, T* out);

} // namespace lockstep
