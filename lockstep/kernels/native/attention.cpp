// Attention forward: every query row walks its keys in blocks of sixteen, ascending, with an online softmax in fp32.
//
// A row's bits are its own. Its dot products, weights and sums run in one order, written out in panel.h, whatever shares
// the tile, however many threads there are and wherever the pages lie. Rows that do not see a block do not take part in
// it; keys that a row does not see have weight 0.
#include "attention.h"

#include <algorithm>

#include "threads.h"

namespace lockstep {
namespace {

constexpr double kGrain = 40000.0; // products of one row with one key block that pay for waking a thread, times D

struct Tile {
  int64_t row;          // first packed row
  int64_t seen;         // keys that the first row sees; each further row sees one more
  const int64_t* table; // block ids
  int rows, blocks;
};

std::vector<Tile> tiles_of(const Span* spans, int64_t num_spans, const int64_t* table, int tile) {
  std::vector<Tile> tiles;
  for (int64_t s = 0; s < num_spans; ++s)
    for (int64_t at = 0; at < spans[s].count; at += tile) {
      const int rows = (int)std::min<int64_t>(tile, spans[s].count - at);
      const int64_t seen = spans[s].start + at + 1;
      const int blocks = (int)((seen + rows - 1 + kBlock - 1) / kBlock);
      tiles.push_back({spans[s].row + at, seen, table + spans[s].table, rows, blocks});
    }
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
    return (int64_t)a.blocks * a.rows > (int64_t)b.blocks * b.rows;
  });
  return tiles;
}

template <typename T>
class Walk {
 public:
  Walk(const Problem<T>& problem, int tile, T* out, float* normaliser)
      : p_(problem), P_(padded(problem.heads.dim)), out_(out), normaliser_(normaliser),
        scratch_((size_t)tile * problem.heads.group() * (2 * P_ + 2 * kLanes) + 2 * kBlock * P_) {
    const int most = tile * p_.heads.group();
    q_ = scratch_.take(most * P_);
    sums_ = scratch_.take(most * P_);
    totals_ = scratch_.take(most * kLanes);
    peaks_ = scratch_.take(most * kLanes); // one of 16 is used: keeps cache lines whole
    keys_ = scratch_.take(kBlock * P_);
    values_ = scratch_.take(kBlock * P_);
  }

  void run(const Tile& tile, int head) {
    const int G = p_.heads.group(), M = tile.rows * G, D = p_.heads.dim;
    begin(tile, head);
    for (int j = 0; j < tile.blocks; ++j) {
      const int64_t first_key = (int64_t)j * kBlock;
      const int count = (int)std::min<int64_t>(kBlock, tile.seen + tile.rows - 1 - first_key);
      const int64_t next = tile.table[std::min(j + 1, tile.blocks - 1)];
      const T* rows[kBlock];
      point(p_.k, tile.table[j], head, count, rows);
      ask(p_.k, next, head, 0);
      turn(rows, count, D, keys_);
      ask(p_.k, next, head, kBlock / 2);
      point(p_.v, tile.table[j], head, count, rows);
      straighten(rows, count, D, values_);
      ask(p_.v, next, head, 0);
      const int64_t blind = std::max<int64_t>(0, first_key - tile.seen + 1); // rows that see nothing of this block
      by_rows((int)blind * G, M, [&](auto R, int m) { step<decltype(R)::value>(tile, m, first_key); });
      ask(p_.v, next, head, kBlock / 2);
    }
    end(tile, head);
  }

 private:
  // Half the keys of the block that comes next: pages lie anywhere, so that nobody else asks for them in time. Asking for
  // all at once would fill the queue of the cache and stop the work in hand.
  LOCKSTEP_INLINE void ask(const Source<T>& source, int64_t block, int head, int first) const {
    for (int s = first; s < first + kBlock / 2; ++s) {
      const char* row = reinterpret_cast<const char*>(source.at(block, head, s));
      for (size_t at = 0; at < p_.heads.dim * sizeof(T); at += 64) __builtin_prefetch(row + at, 0, 3);
    }
  }

  void begin(const Tile& tile, int head) {
    const int G = p_.heads.group(), D = p_.heads.dim;
    for (int i = 0; i < tile.rows; ++i)
      for (int g = 0; g < G; ++g) {
        const int m = i * G + g;
        float* q = q_ + m * P_;
        widen_row(p_.q + (tile.row + i) * p_.q_row + (head * G + g) * p_.q_head, D, q);
        for (int d = 0; d < P_; d += kLanes) store(q + d, load(q + d) * splat(p_.scale));
        for (int d = 0; d < P_; d += kLanes) store(sums_ + m * P_ + d, splat(0.0f));
        store(totals_ + m * kLanes, splat(0.0f));
        peaks_[m * kLanes] = -std::numeric_limits<float>::infinity();
      }
  }

  template <int R>
  LOCKSTEP_INLINE void step(const Tile& tile, int m, int64_t first_key) {
    const int G = p_.heads.group();
    alignas(64) float weights[R * kBlock];
    float decay[R];
    Lanes scores[R];
    dot<R>(q_ + m * P_, keys_, P_, scores);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t visible = tile.seen + (m + r) / G - first_key;
      float& peak = peaks_[(m + r) * kLanes];
      float* total = totals_ + (m + r) * kLanes;
      Lanes score = scores[r];
      if (visible < kBlock) score = from_lane(score, (int)visible, -std::numeric_limits<float>::infinity());
      const float highest = maximum(score);
      const float higher = highest > peak ? highest : peak;
      // exp(0) is 1 exactly, so a peak that stays needs no exponential
      decay[r] = higher == peak ? 1.0f : first(exponential(splat(peak - higher)));
      const Lanes weight = exponential(score - splat(higher));
      store(total, fma(load(total), splat(decay[r]), weight));
      store(weights + r * kBlock, weight);
      peak = higher;
    }
    mix<R>(weights, values_, P_, decay, sums_ + m * P_);
  }

  static LOCKSTEP_INLINE float first(Lanes x) { return x.part[0][0]; }

  void end(const Tile& tile, int head) {
    const int G = p_.heads.group(), D = p_.heads.dim;
    for (int i = 0; i < tile.rows; ++i)
      for (int g = 0; g < G; ++g) {
        const int m = i * G + g;
        const int64_t row = (tile.row + i) * p_.heads.query + head * G + g;
        const float total = sum(load(totals_ + m * kLanes));
        const float* sums = sums_ + m * P_;
        T* out = out_ + row * D;
        for (int d = 0; d < D; d += kLanes) {
          const Lanes value = load(sums + d) / splat(total);
          if (d + kLanes <= D) store(out + d, value);
          else store(out + d, value, D - d);
        }
        normaliser_[row] = peaks_[m * kLanes] + std::log(total);
      }
  }

  const Problem<T>& p_;
  const int P_;
  T* out_;
  float* normaliser_;
  Scratch scratch_;
  float *q_, *sums_, *totals_, *peaks_, *keys_, *values_;
};

} // namespace

template <typename T>
void attend(const Problem<T>& problem, int tile, T* out, float* normaliser) {
  const std::vector<Tile> tiles = tiles_of(problem.spans, problem.num_spans, problem.table, tile);
  const int K = problem.heads.kv;
  double cost = 0;
  for (const Tile& t : tiles) cost += (double)t.blocks * (t.rows + 2) * problem.heads.query * problem.heads.dim;
  share((int64_t)tiles.size() * K, cost, kGrain, [&] {
    return [&, walk = std::make_unique<Walk<T>>(problem, tile, out, normaliser)](int64_t item) {
      walk->run(tiles[item / K], (int)(item % K));
    };
  });
}

template void attend<float>(const Problem<float>&, int, float*, float*);
template void attend<uint16_t>(const Problem<uint16_t>&, int, uint16_t*, float*);

} // namespace lockstep
