// The small steps between products: each row alone, in fp32, rounded once.
//
// Rows are [A, B, E] with strides: tokens, heads (1 where there are none), elements side by side. Results are dense.
#pragma once

#include <cstdint>

namespace lockstep {

template <typename T>
struct Rows {
  const T* data;
  int64_t A, B, E, stride_a, stride_b;

  const T* at(int64_t i) const { return data + i / B * stride_a + i % B * stride_b; }
  int64_t count() const { return A * B; }
};

// x / sqrt(mean(x^2) + eps) * gain; scale [A * B] is what x was multiplied by before the gain. With `delta`, x + delta
// takes the place of x, rounded, and is left in `total`.
template <typename T>
void rms_norm(const Rows<T>& x, const Rows<T>* delta, const T* gain, float eps, T* total, T* out, float* scale);

// silu(gate) * up of rows [gate, up]; out has half the columns
template <typename T>
void silu_mul(const Rows<T>& gate_up, T* out);

// Half-rotation of each row by the angles of its token: cosines and sines [A, E / 2]
template <typename T>
void rotate(const Rows<T>& x, const float* cosine, const float* sine, T* out);

// Rows [A tokens, B heads, E] into a cache [N, B, 16, E], token t into slot slots[t] = 16 n + s
template <typename T>
void scatter(const Rows<T>& x, const int64_t* slots, int64_t block_stride, int64_t head_stride, int64_t slot_stride,
             T* cache);

} // namespace lockstep
