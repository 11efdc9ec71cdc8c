// Attention backward over packed sequences: weights are rebuilt from the log-normaliser (Dao et al. 2022,
// arXiv:2205.14135), block by block, so no [rows, keys] matrix is ever whole.
//
// Deterministic for any number of threads. One thread works through one (sequence, kv head): its queries' gradients are
// its own, keys ascending. Keys may be shared by sequences, so their gradients go into a partial sum of each sequence
// first; a second pass adds those, sequences ascending.
//
// A query row is worked on together with the others of its tile; P as in panel.h.
#include <algorithm>
#include <numeric>

#include "attention.h"
#include "threads.h"

namespace lockstep {
namespace {

constexpr double kGrain = 40000.0;
constexpr int kTile = 16; // queries (times heads of the group) whose weights are kept at once

// Partial gradients [slots of all sequences, K, P]: where one sequence's block of keys begins.
struct Partial {
  Scratch scratch;
  float *k, *v;
  Partial(size_t count) : scratch(2 * count), k(scratch.take(count)), v(scratch.take(count)) {}
};

template <typename T>
class Descent {
 public:
  Descent(const Problem<T>& problem, const Slope<T>& slope, int64_t most_rows, Partial& partial)
      : p_(problem), s_(slope), G_(problem.heads.group()), P_(padded(problem.heads.dim)), partial_(partial),
        scratch_((size_t)most_rows * G_ * (3 * P_ + 2) + kLanes + 3 * kBlock * P_ + 2 * kTile * G_ * kBlock) {
    keys_ = scratch_.take(kBlock * P_);
    values_ = scratch_.take(kBlock * P_);
    straight_ = scratch_.take(kBlock * P_);
    weights_ = scratch_.take(kTile * G_ * kBlock);
    slopes_ = scratch_.take(kTile * G_ * kBlock);
    q_ = scratch_.take(most_rows * G_ * P_);
    grad_ = scratch_.take(most_rows * G_ * P_);
    grad_q_ = scratch_.take(most_rows * G_ * P_);
    normaliser_ = scratch_.take(most_rows * G_);
    delta_ = scratch_.take(most_rows * G_);
  }

  void run(const Span& span, int head) {
    begin(span, head);
    const int64_t seen = span.start + span.count;
    for (int64_t first_key = 0; first_key < seen; first_key += kBlock) {
      const int64_t block = p_.table[span.table + first_key / kBlock];
      const int count = (int)std::min<int64_t>(kBlock, seen - first_key);
      const T* rows[kBlock];
      point(p_.k, block, head, count, rows);
      turn(rows, count, p_.heads.dim, keys_);
      straighten(rows, count, p_.heads.dim, straight_);
      point(p_.v, block, head, count, rows);
      turn(rows, count, p_.heads.dim, values_);
      const int64_t at = (block * p_.heads.kv + head) * kBlock * P_; // zero at first
      const int64_t blind = std::max<int64_t>(0, first_key - span.start); // queries that see nothing of this block
      for (int64_t i = blind; i < span.count; i += kTile) {
        const int m = (int)i * G_, rows_here = (int)std::min<int64_t>(kTile, span.count - i) * G_;
        by_rows(0, rows_here, [&](auto R, int r) { weigh<decltype(R)::value>(m, r, span.start - first_key); });
        spread(slopes_, q_ + m * P_, rows_here, P_, partial_.k + at);
        spread(weights_, grad_ + m * P_, rows_here, P_, partial_.v + at);
      }
    }
    end(span, head);
  }

 private:
  void begin(const Span& span, int head) {
    const int H = p_.heads.query, D = p_.heads.dim;
    for (int64_t i = 0; i < span.count; ++i)
      for (int g = 0; g < G_; ++g) {
        const int64_t m = i * G_ + g, row = (span.row + i) * H + head * G_ + g;
        float *q = q_ + m * P_, *grad = grad_ + m * P_, *out = grad_q_ + m * P_;
        widen_row(p_.q + (span.row + i) * p_.q_row + (head * G_ + g) * p_.q_head, D, q);
        widen_row(s_.grad + row * D, D, grad);
        widen_row(s_.out + row * D, D, out);
        Lanes products = splat(0.0f);
        for (int d = 0; d < P_; d += kLanes) {
          products = fma(load(grad + d), load(out + d), products);
          store(q + d, load(q + d) * splat(p_.scale)); // as in the forward pass
          store(out + d, splat(0.0f));
        }
        delta_[m] = sum(products);
        normaliser_[m] = s_.normaliser[row];
      }
  }

  // Weights and slopes of rows m + r.. for the block in keys_ and values_; `offset`: position of query 0 in the block.
  template <int R>
  LOCKSTEP_INLINE void weigh(int m, int r, int64_t offset) {
    Lanes score[R], slope[R];
    dot<R>(q_ + (m + r) * P_, keys_, P_, score);
    dot<R>(grad_ + (m + r) * P_, values_, P_, slope);
    float once[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const int row = m + r + i;
      const int64_t visible = offset + row / G_ + 1;
      Lanes weight = exponential(score[i] - splat(normaliser_[row]));
      if (visible < kBlock) weight = from_lane(weight, (int)visible, 0.0f);
      store(weights_ + (r + i) * kBlock, weight);
      store(slopes_ + (r + i) * kBlock, weight * (slope[i] - splat(delta_[row])));
      once[i] = 1.0f;
    }
    mix<R>(slopes_ + r * kBlock, straight_, P_, once, grad_q_ + (m + r) * P_);
  }

  void end(const Span& span, int head) {
    const int H = p_.heads.query, D = p_.heads.dim;
    for (int64_t i = 0; i < span.count; ++i)
      for (int g = 0; g < G_; ++g) {
        const float* found = grad_q_ + (i * G_ + g) * P_;
        T* out = s_.grad_q + ((span.row + i) * H + head * G_ + g) * D;
        for (int d = 0; d < D; d += kLanes) {
          const Lanes value = load(found + d) * splat(p_.scale);
          if (d + kLanes <= D) store(out + d, value);
          else store(out + d, value, D - d);
        }
      }
  }

  const Problem<T>& p_;
  const Slope<T>& s_;
  const int G_, P_;
  Partial& partial_;
  Scratch scratch_;
  float *keys_, *values_, *straight_, *weights_, *slopes_, *q_, *grad_, *grad_q_, *normaliser_, *delta_;
};

// Slots of every packed row, sequences ascending: those of row t are slots[first[t]] up to slots[first[t + 1]].
struct Uses {
  std::vector<int64_t> first, slots;
};

template <typename T>
Uses uses_of(const Problem<T>& p, int64_t packed) {
  Uses uses{std::vector<int64_t>(packed + 1, 0), {}};
  const auto each = [&](const auto& body) {
    for (int64_t s = 0; s < p.num_spans; ++s)
      for (int64_t key = 0; key < p.spans[s].start + p.spans[s].count; ++key) {
        const int64_t slot = p.table[p.spans[s].table + key / kBlock] * kBlock + key % kBlock;
        body(p.k.rows[slot], slot);
      }
  };
  each([&](int64_t row, int64_t) { ++uses.first[row + 1]; });
  std::partial_sum(uses.first.begin(), uses.first.end(), uses.first.begin());
  uses.slots.resize(uses.first.back());
  std::vector<int64_t> next(uses.first.begin(), uses.first.end() - 1);
  each([&](int64_t row, int64_t slot) { uses.slots[next[row]++] = slot; });
  return uses;
}

template <typename T>
void gather(const float* partial, const Uses& uses, int64_t t, const Heads& heads, T* out) {
  const int K = heads.kv, D = heads.dim, P = padded(D);
  for (int h = 0; h < K; ++h)
    for (int d = 0; d < D; d += kLanes) {
      Lanes total = splat(0.0f);
      for (int64_t u = uses.first[t]; u < uses.first[t + 1]; ++u) {
        const int64_t slot = uses.slots[u];
        total = total + load(partial + (((slot / kBlock) * K + h) * kBlock + slot % kBlock) * P + d);
      }
      T* to = out + (t * K + h) * D + d;
      if (d + kLanes <= D) store(to, total);
      else store(to, total, D - d);
    }
}

} // namespace

template <typename T>
void descend(const Problem<T>& p, const Slope<T>& slope) {
  const int K = p.heads.kv, P = padded(p.heads.dim);
  int64_t most_rows = 0, blocks = 0;
  double cost = 0;
  std::vector<double> costs(p.num_spans);
  for (int64_t s = 0; s < p.num_spans; ++s) {
    const Span& span = p.spans[s];
    const int64_t seen = span.start + span.count;
    most_rows = std::max(most_rows, span.count);
    for (int64_t j = 0; j * kBlock < seen; ++j) blocks = std::max(blocks, p.table[span.table + j] + 1);
    costs[s] = ((double)seen / kBlock + 1) * (span.count + 4);
    cost += 3 * costs[s] * p.heads.query * p.heads.dim;
  }
  std::vector<int64_t> order(p.num_spans);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return costs[a] > costs[b]; });
  Partial partial((size_t)blocks * kBlock * K * P);
  share(p.num_spans * K, cost, kGrain, [&] {
    return [&, descent = std::make_unique<Descent<T>>(p, slope, most_rows, partial)](int64_t item) {
      descent->run(p.spans[order[item / K]], (int)(item % K));
    };
  });
  const Uses uses = uses_of(p, slope.packed);
  share(slope.packed, (double)uses.slots.size() * K * P, kGrain, [&] {
    return [&](int64_t t) {
      gather(partial.k, uses, t, p.heads, slope.grad_k);
      gather(partial.v, uses, t, p.heads, slope.grad_v);
    };
  });
}

template void descend<float>(const Problem<float>&, const Slope<float>&);
template void descend<uint16_t>(const Problem<uint16_t>&, const Slope<uint16_t>&);

} // namespace lockstep
