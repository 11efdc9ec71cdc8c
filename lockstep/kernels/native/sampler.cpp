// See sampler.h.
#include "sampler.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "lanes.h"
#include "threads.h"

namespace lockstep {
namespace {

constexpr double kGrain = 20000.0; // entries that pay for waking a thread
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int kSums = 4; // partial sums of a block, by entry / 16 mod 4: their latencies overlap

LOCKSTEP_INLINE Lanes entries(const float* x, int64_t left) {
  return left >= kLanes ? load(x) : from_lane(load(x, (int)left), (int)left, kNothing);
}

LOCKSTEP_INLINE Lanes larger(Lanes a, Lanes b) {
  LOCKSTEP_EACH_PART a.part[p] = a.part[p] < b.part[p] ? b.part[p] : a.part[p];
  return a;
}

LOCKSTEP_INLINE Lanes scaled(Lanes x, float peak, float scale) { return (x - splat(peak)) * splat(scale); }

float peak_of(const float* x, int64_t n) {
  Lanes most[kSums] = {splat(kNothing), splat(kNothing), splat(kNothing), splat(kNothing)};
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes)
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) most[s] = larger(most[s], load(x + i + s * kLanes));
  for (; i < n; i += kLanes) most[0] = larger(most[0], entries(x + i, n - i));
  return maximum(larger(larger(most[0], most[1]), larger(most[2], most[3])));
}

// Sum over one block of w and, if asked for, of w * z.
template <bool kMoment>
LOCKSTEP_INLINE void block_sum(const float* x, int64_t n, float peak, float scale, float* total, float* moment) {
  Lanes sums[kSums], moments[kSums];
  for (int s = 0; s < kSums; ++s) sums[s] = moments[s] = splat(0.0f);
  const auto add = [&](int s, Lanes x) __attribute__((always_inline)) {
    const Lanes z = scaled(x, peak, scale), w = exponential(z);
    sums[s] = sums[s] + w;
    if constexpr (kMoment) moments[s] = fma(w, larger(splat(-100.0f), z), moments[s]); // 0 * -infinity is not wanted
  };
  if (n == kSpan) {
    for (int64_t i = 0; i < kSpan; i += kSums * kLanes)
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) add(s, load(x + i + s * kLanes));
  } else {
    for (int64_t i = 0; i < n; i += kLanes) add(i / kLanes % kSums, entries(x + i, n - i));
  }
  *total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if constexpr (kMoment) *moment = sum((moments[0] + moments[1]) + (moments[2] + moments[3]));
}

// `cumulative`, if given, gets S after each block.
template <bool kMoment>
Total total_of(const float* x, int64_t n, float scale, std::vector<double>* cumulative) {
  Total out{peak_of(x, n), 0.0, 0.0};
  if (cumulative) cumulative->clear();
  for (int64_t at = 0; at < n; at += kSpan) {
    float total, moment = 0.0f;
    block_sum<kMoment>(x + at, std::min(kSpan, n - at), out.peak, scale, &total, &moment);
    out.sum += total;
    out.moment += moment;
    if (cumulative) cumulative->push_back(out.sum);
  }
  return out;
}

// w of some entries; `out` has room for whole lanes
void weights(const float* x, int64_t n, float peak, float scale, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, exponential(scaled(entries(x + i, n - i), peak, scale)));
}

float logprob(float x, const Total& total, float scale) {
  const float z = (x - total.peak) * scale;
  return (float)((double)z - std::log(total.sum));
}

// The first entry whose cumulative sum exceeds u * S; the last with any mass if rounding leaves none.
int64_t pick(const float* x, int64_t n, float scale, const Total& total, const std::vector<double>& cumulative,
             double uniform) {
  const double target = uniform * total.sum;
  const auto found = std::find_if(cumulative.begin(), cumulative.end(), [&](double c) { return c > target; });
  if (found == cumulative.end()) return n - 1; // NaN: the logprob tells
  const int64_t block = found - cumulative.begin(), at = block * kSpan, count = std::min(kSpan, n - at);
  alignas(64) float mass[kSpan];
  weights(x + at, count, total.peak, scale, mass);
  double sum = block > 0 ? cumulative[block - 1] : 0.0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (mass[i] > 0) last = i;
    sum += mass[i];
    if (sum > target) return at + i;
  }
  return at + last;
}

int64_t largest(const float* x, int64_t n, float peak) {
  const float* found = std::find(x, x + n, peak);
  return found == x + n ? n - 1 : found - x;
}

// Ids that min-p, then top-k, then top-p leave, ascending. Ties with the smallest value of top-k stay.
class Filter {
 public:
  const std::vector<int32_t>& operator()(const float* x, int64_t n, const Draw& how) {
    ids_.clear();
    const float peak = peak_of(x, n);
    alignas(64) float mass[kSpan];
    for (int64_t at = 0; at < n; at += kSpan) {
      const int64_t count = std::min(kSpan, n - at);
      weights(x + at, count, peak, how.scale, mass);
      for (int64_t i = 0; i < count; ++i) {
        if (x[at + i] != x[at + i]) return ids_.assign(1, (int32_t)(at + i)), ids_; // NaN: the logprob tells
        if (x[at + i] != kNothing && !(mass[i] < how.min_p)) ids_.push_back((int32_t)(at + i));
      }
    }
    if (how.top_k > 0 && how.top_k < (int64_t)ids_.size()) top_k(x, how.top_k);
    if (how.top_p < 1.0) top_p(x, peak, how);
    return ids_;
  }

 private:
  void top_k(const float* x, int64_t k) {
    values_.resize(ids_.size());
    for (size_t i = 0; i < ids_.size(); ++i) values_[i] = x[ids_[i]];
    std::nth_element(values_.begin(), values_.begin() + k - 1, values_.end(), std::greater<float>());
    const float least = values_[k - 1];
    ids_.erase(std::remove_if(ids_.begin(), ids_.end(), [&](int32_t id) { return x[id] < least; }), ids_.end());
  }

  // The smallest set, by falling logit and then by rising id, whose mass reaches p; sorted no further than it goes.
  void top_p(const float* x, float peak, const Draw& how) {
    const int64_t n = (int64_t)ids_.size();
    values_.resize((n + kLanes - 1) / kLanes * kLanes);
    for (int64_t i = 0; i < n; ++i) values_[i] = x[ids_[i]];
    weights(values_.data(), n, peak, how.scale, values_.data());
    double total = 0.0, before = 0.0;
    order_.resize(n);
    for (int64_t i = 0; i < n; ++i) total += values_[i], order_[i] = {x[ids_[i]], (int32_t)i};
    const auto first = [](const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    int64_t inside = 0;
    for (int64_t sorted = 0, step = 64; inside < n; ++inside) {
      if (inside > 0 && before >= how.top_p * total) break;
      if (inside == sorted) {
        sorted = std::min(n, sorted + step), step *= 8;
        std::partial_sort(order_.begin() + inside, order_.begin() + sorted, order_.end(), first);
      }
      before += values_[order_[inside].second];
    }
    values_.resize(0);
    std::vector<int32_t> kept;
    for (int64_t i = 0; i < inside; ++i) kept.push_back(ids_[order_[i].second]);
    std::sort(kept.begin(), kept.end());
    ids_ = std::move(kept);
  }

  std::vector<int32_t> ids_;
  std::vector<float> values_;
  std::vector<std::pair<float, int32_t>> order_;
};

// The entries of some ids, side by side.
const float* gather(const float* x, const int32_t* ids, int64_t n, std::vector<float>& out) {
  out.resize(n);
  for (int64_t i = 0; i < n; ++i) out[i] = x[ids[i]];
  return out.data();
}

// Rows of ids that are not ascending, or repeat, mean the same support.
struct Ascending {
  std::vector<int32_t> copy;
  std::pair<const int32_t*, int64_t> operator()(const Kept& kept, int64_t row) {
    const int32_t *from = kept.ids + kept.offsets[row], *to = kept.ids + kept.offsets[row + 1];
    if (std::adjacent_find(from, to, std::greater_equal<int32_t>()) == to) return {from, to - from};
    copy.assign(from, to);
    std::sort(copy.begin(), copy.end());
    copy.erase(std::unique(copy.begin(), copy.end()), copy.end());
    return {copy.data(), (int64_t)copy.size()};
  }
};

} // namespace

void draw(const Logits& logits, const Draw* how, Drawn& drawn) {
  drawn.kept.resize(logits.N);
  share(logits.N, (double)logits.N * logits.V, kGrain, [&] {
    return [&, filter = Filter(), values = std::vector<float>(), cumulative = std::vector<double>()](int64_t i) mutable {
      const float* x = logits.data + i * logits.stride;
      int64_t n = logits.V;
      if (how[i].truncates) {
        drawn.kept[i] = filter(x, n, how[i]);
        n = (int64_t)drawn.kept[i].size();
        x = gather(x, drawn.kept[i].data(), n, values);
      }
      const Total total = total_of<false>(x, n, how[i].scale, &cumulative);
      const int64_t at = how[i].greedy ? largest(x, n, total.peak) : pick(x, n, how[i].scale, total, cumulative, how[i].uniform);
      drawn.ids[i] = how[i].truncates ? drawn.kept[i][at] : at;
      drawn.logprobs[i] = logprob(x[at], total, how[i].scale);
    };
  });
}

void score(const Logits& logits, const int64_t* ids, float scale, const Kept& kept, float* logprobs, float* entropy,
           double* totals) {
  share(logits.N, (double)logits.N * logits.V, kGrain, [&] {
    return [&, ascending = Ascending(), values = std::vector<float>()](int64_t i) mutable {
      const float *row = logits.data + i * logits.stride, *x = row;
      int64_t n = logits.V;
      bool inside = true;
      if (kept.ids) {
        const auto [support, count] = ascending(kept, i);
        inside = std::binary_search(support, support + count, (int32_t)ids[i]);
        x = gather(row, support, n = count, values);
      }
      const Total total = total_of<true>(x, n, scale, nullptr);
      logprobs[i] = inside ? logprob(row[ids[i]], total, scale) : kNothing;
      entropy[i] = (float)(std::log(total.sum) - total.moment / total.sum);
      totals[2 * i] = total.peak, totals[2 * i + 1] = total.sum;
    };
  });
}

// grad / T * (one-hot - w / S)
template <typename T>
void slope(const Logits& logits, const int64_t* ids, float scale, const Kept& kept, const double* totals,
           const float* grad, T* out) {
  share(logits.N, (double)logits.N * logits.V, kGrain, [&] {
    return [&, ascending = Ascending(), values = std::vector<float>()](int64_t i) mutable {
      const float *row = logits.data + i * logits.stride, *x = row;
      const float peak = (float)totals[2 * i], up = grad[i] * scale, down = (float)(-up / totals[2 * i + 1]);
      T* to = out + i * logits.V;
      const int32_t* support = nullptr;
      int64_t n = logits.V;
      if (kept.ids) {
        std::tie(support, n) = ascending(kept, i);
        x = gather(row, support, n, values);
        std::memset(to, 0, logits.V * sizeof(T));
      }
      for (int64_t e = 0; e < n; e += kLanes) {
        const int count = (int)std::min<int64_t>(kLanes, n - e);
        const Lanes value = exponential(scaled(entries(x + e, n - e), peak, scale)) * splat(down);
        T some[kLanes];
        if (!support && count == kLanes) store(to + e, value);
        else if (!support) store(to + e, value, count);
        else {
          store(some, value);
          for (int j = 0; j < count; ++j) to[support[e + j]] = some[j];
        }
      }
      const float z = (row[ids[i]] - peak) * scale;
      const bool inside = !support || std::binary_search(support, support + n, (int32_t)ids[i]);
      const float p = inside ? exponential(splat(z)).part[0][0] : 0.0f;
      T both[kLanes];
      store(both, splat(up + p * down));
      to[ids[i]] = both[0];
    };
  });
}

template void slope<float>(const Logits&, const int64_t*, float, const Kept&, const double*, const float*, float*);
template void slope<uint16_t>(const Logits&, const int64_t*, float, const Kept&, const double*, const float*, uint16_t*);

} // namespace lockstep
