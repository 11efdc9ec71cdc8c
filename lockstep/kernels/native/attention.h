// What the two passes of attention are told. Letters: T packed rows, H query heads, K kv heads, D head dim, S sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "panel.h"

namespace lockstep {

struct Heads {
  int query, kv, dim;
  int group() const { return query / kv; }
};

// Rows of one sequence: `count` packed rows from `row` on, at positions `start`.., over the blocks at `table`.
struct Span {
  int64_t start, count, row, table;
};

template <typename T>
struct Problem {
  Heads heads;
  const T* q; // [T, H, D] with these strides
  int64_t q_row, q_head;
  Source<T> k, v;
  const Span* spans;
  int64_t num_spans;
  const int64_t* table; // block ids
  float scale;
};

// out [T, H, D] and log-normaliser [T, H], both contiguous
template <typename T>
void attend(const Problem<T>& problem, int tile, T* out, float* normaliser);

// What the forward pass left, and the gradient of its rows; all [T, H, ...] and contiguous.
template <typename T>
struct Slope {
  const T *grad, *out;
  const float* normaliser;
  T *grad_q, *grad_k, *grad_v; // [T, H, D], [T, K, D] twice
  int64_t packed;              // rows of keys
};

// Of packed sequences: `problem.k.rows` is given.
template <typename T>
void descend(const Problem<T>& problem, const Slope<T>& slope);

} // namespace lockstep
