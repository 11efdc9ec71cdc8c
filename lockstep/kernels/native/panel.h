// Sixteen keys (or values) of one head, widened to fp32 in a thread's own scratch, and the three small products that
// attention is made of. All queries that see a block share one widening of it: the heads of a GQA group, and the rows of
// a tile.
//
// Shapes: M query rows of one kv head (rows of a tile x heads of the group), D head dim, P = D rounded up to 16 lanes.
//   turned   [P][16]  element d of all sixteen keys side by side: a dot product is one lane
//   straight [16][P]  the rows themselves: a weighted sum of them is one register of columns
// What is past D, or past the last visible key, is zero.
#pragma once

#include "lanes.h"
#include "scratch.h"
#include "transpose.h"

namespace lockstep {

constexpr int kBlock = 16; // keys in a step of the walk: KEY_BLOCK of attention.py
static_assert(kBlock == kLanes, "one lane for each key of a block");

constexpr int kRows = kWidth == 16 ? 6 : 1; // query rows in one product: what the registers hold
constexpr int kDots = 4;                    // partial sums of a dot product, by d mod 4: their latencies overlap

inline int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Where a key lies: slot `s` of block `b` of a cache or, with `rows`, packed row rows[16 b + s].
template <typename T>
struct Source {
  const T* base;
  int64_t block, head, slot; // strides in elements
  const int64_t* rows;

  const T* at(int64_t b, int h, int s) const {
    return rows ? base + rows[b * kBlock + s] * slot + h * head : base + b * block + h * head + s * slot;
  }
};

// Columns [d, d + kWidth words) of kWidth keys; a word holds one float or two bfloat16.
template <typename T>
LOCKSTEP_INLINE void turn_square(const T* const* key, int d, float* turned) {
  constexpr int each = 4 / sizeof(T);
  Words row[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) std::memcpy(&row[i], key[i] + d, sizeof(Words));
  transpose(row);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    const Words first = each == 2 ? row[i] << 16 : row[i], second = row[i] & 0xffff0000u;
    std::memcpy(turned + (d + i * each) * kBlock, &first, sizeof(Words));
    if (each == 2) std::memcpy(turned + (d + i * each + 1) * kBlock, &second, sizeof(Words));
  }
}

// Moves data only: no rounding here, so how a column was reached cannot show.
template <typename T>
void turn(const T* const* key, int count, int D, float* turned) {
  int d = 0;
  if (kTurns && count == kBlock) {
    constexpr int columns = kWidth * 4 / sizeof(T);
    for (; d + columns <= D; d += columns)
      for (int first = 0; first < kBlock; first += kWidth) turn_square(key + first, d, turned + first);
  }
  for (; d < D; ++d)
    for (int s = 0; s < kBlock; ++s) turned[d * kBlock + s] = s < count ? widen(key[s][d]) : 0.0f;
}

template <typename T>
LOCKSTEP_INLINE void widen_row(const T* from, int D, float* to) {
  int d = 0;
  for (; d + kLanes <= D; d += kLanes) store(to + d, load(from + d));
  if (d < D) store(to + d, load(from + d, D - d));
}

template <typename T>
void straighten(const T* const* row, int count, int D, float* straight) {
  const int P = padded(D);
  for (int s = 0; s < count; ++s) widen_row(row[s], D, straight + s * P);
  std::memset(straight + count * P, 0, sizeof(float) * (kBlock - count) * P);
}

template <typename T>
LOCKSTEP_INLINE void point(const Source<T>& source, int64_t block, int head, int count, const T** out) {
  for (int s = 0; s < count; ++s) out[s] = source.at(block, head, s);
}

// dots[r] = x[r] . (sixteen keys); x is [R][P]
template <int R>
LOCKSTEP_INLINE void dot(const float* x, const float* turned, int P, Lanes* dots) {
  Lanes sums[R][kDots];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kDots; ++i) sums[r][i] = splat(0.0f);
  for (int d = 0; d < P; d += kDots)
#pragma GCC unroll 4
    for (int i = 0; i < kDots; ++i) {
      const Lanes key = load(turned + (d + i) * kBlock);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][i] = fma(splat(x[r * P + d + i]), key, sums[r][i]);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) dots[r] = (sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]);
}

// out[r] = out[r] * decay[r] + sum over s of weights[r][s] * straight[s], s ascending; C registers of columns
template <int R, int C>
LOCKSTEP_INLINE void mix_columns(const float* weights, const float* straight, int P, const float* decay, float* out) {
  Lanes sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[r][c] = load(out + r * P + c * kLanes) * splat(decay[r]);
  for (int s = 0; s < kBlock; ++s)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const Lanes value = load(straight + s * P + c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][c] = fma(splat(weights[r * kBlock + s]), value, sums[r][c]);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out + r * P + c * kLanes, sums[r][c]);
}

template <int R>
LOCKSTEP_INLINE void mix(const float* weights, const float* straight, int P, const float* decay, float* out) {
  int at = 0;
  for (; at + 4 * kLanes <= P; at += 4 * kLanes) mix_columns<R, 4>(weights, straight + at, P, decay, out + at);
  switch ((P - at) / kLanes) {
    case 3: return mix_columns<R, 3>(weights, straight + at, P, decay, out + at);
    case 2: return mix_columns<R, 2>(weights, straight + at, P, decay, out + at);
    case 1: return mix_columns<R, 1>(weights, straight + at, P, decay, out + at);
  }
}

// out[s] += sum over m of weights[m][s] * x[m], m ascending: J of the sixteen keys, C registers of columns
constexpr int kKeys = kWidth == 16 ? 4 : 1;

template <int J, int C>
LOCKSTEP_INLINE void spread_columns(const float* weights, const float* x, int M, int P, float* out) {
  Lanes sums[J][C];
#pragma GCC unroll 4
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[j][c] = load(out + j * P + c * kLanes);
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const Lanes row = load(x + m * P + c * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sums[j][c] = fma(splat(weights[m * kBlock + j]), row, sums[j][c]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out + j * P + c * kLanes, sums[j][c]);
}

LOCKSTEP_INLINE void spread(const float* weights, const float* x, int M, int P, float* out) {
  for (int j = 0; j < kBlock; j += kKeys) {
    int at = 0;
    for (; at + 4 * kLanes <= P; at += 4 * kLanes) spread_columns<kKeys, 4>(weights + j, x + at, M, P, out + j * P + at);
    for (; at < P; at += kLanes) spread_columns<kKeys, 1>(weights + j, x + at, M, P, out + j * P + at);
  }
}

// Calls body(number<R>, first row) over M rows, as many at a time as the registers hold. A row's own arithmetic is the
// same for every R: all sums above are one row's, in one order.
template <int R>
struct number {
  static constexpr int value = R;
};

template <typename Body>
LOCKSTEP_INLINE void by_rows(int first, int M, const Body& body) {
  for (; first + kRows <= M; first += kRows) body(number<kRows>{}, first);
  if constexpr (kRows == 6) {
    switch (M - first) {
      case 5: return body(number<5>{}, first);
      case 4: return body(number<4>{}, first);
      case 3: return body(number<3>{}, first);
      case 2: return body(number<2>{}, first);
      case 1: return body(number<1>{}, first);
    }
  }
}

} // namespace lockstep
