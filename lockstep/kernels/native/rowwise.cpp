// See rowwise.h. A row's sums run in one order, sixteen columns at a time, and nothing is shared between rows.
#include "rowwise.h"

#include "lanes.h"
#include "panel.h"
#include "threads.h"

namespace lockstep {
namespace {

constexpr double kGrain = 8000.0; // elements that pay for waking a thread

// Calls body(first column, columns) for sixteen columns at a time, the last of them for what is left.
template <typename Body>
LOCKSTEP_INLINE void by_lanes(int64_t E, const Body& body) {
  int64_t e = 0;
  for (; e + kLanes <= E; e += kLanes) body(e, kLanes);
  if (e < E) body(e, (int)(E - e));
}

template <typename T>
LOCKSTEP_INLINE Lanes some(const T* x, int count) {
  return count == kLanes ? load(x) : load(x, count);
}

template <typename T>
LOCKSTEP_INLINE void put(T* x, Lanes value, int count) {
  if (count == kLanes) store(x, value);
  else store(x, value, count);
}

template <typename T, typename Body>
void each_row(const Rows<T>& x, const Body& body) {
  const int64_t some_rows = std::max<int64_t>(1, 4096 / x.E); // a row alone is not worth a turn of the counter
  const int64_t count = x.count();
  share((count + some_rows - 1) / some_rows, (double)count * x.E, kGrain, [&] {
    return [&](int64_t item) {
      for (int64_t i = item * some_rows; i < std::min(count, (item + 1) * some_rows); ++i) body(i);
    };
  });
}

} // namespace

template <typename T>
void rms_norm(const Rows<T>& x, const Rows<T>* delta, const T* gain, float eps, T* total, T* out, float* scale) {
  each_row(x, [&](int64_t i) {
    const T* from = x.at(i);
    if (delta) {
      const T* other = delta->at(i);
      T* to = total + i * x.E;
      by_lanes(x.E, [&](int64_t e, int count) { put(to + e, some(from + e, count) + some(other + e, count), count); });
      from = to;
    }
    Lanes squares[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)}; // by column / 16 mod 4
    by_lanes(x.E, [&](int64_t e, int count) {
      const Lanes value = some(from + e, count);
      Lanes& to = squares[e / kLanes % 4];
      to = fma(value, value, to);
    });
    const float square = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const float by = 1.0f / std::sqrt(square / (float)x.E + eps);
    scale[i] = by;
    by_lanes(x.E, [&](int64_t e, int count) {
      put(out + i * x.E + e, some(from + e, count) * splat(by) * some(gain + e, count), count);
    });
  });
}

template <typename T>
void silu_mul(const Rows<T>& gate_up, T* out) {
  const int64_t half = gate_up.E / 2;
  each_row(gate_up, [&](int64_t i) {
    const T *gate = gate_up.at(i), *up = gate + half;
    by_lanes(half, [&](int64_t e, int count) {
      const Lanes g = some(gate + e, count);
      const Lanes sigmoid = splat(1.0f) / (exponential(splat(0.0f) - g) + splat(1.0f));
      put(out + i * half + e, sigmoid * g * some(up + e, count), count);
    });
  });
}

template <typename T>
void rotate(const Rows<T>& x, const float* cosine, const float* sine, T* out) {
  const int64_t half = x.E / 2;
  each_row(x, [&](int64_t i) {
    const T* from = x.at(i);
    T* to = out + i * x.E;
    const float *c = cosine + i / x.B * half, *s = sine + i / x.B * half;
    by_lanes(half, [&](int64_t e, int count) {
      const Lanes low = some(from + e, count), high = some(from + half + e, count);
      const Lanes by_c = some(c + e, count), by_s = some(s + e, count);
      put(to + e, low * by_c - high * by_s, count);
      put(to + half + e, high * by_c + low * by_s, count);
    });
  });
}

template <typename T>
void scatter(const Rows<T>& x, const int64_t* slots, int64_t block_stride, int64_t head_stride, int64_t slot_stride,
             T* cache) {
  each_row(x, [&](int64_t i) {
    const int64_t slot = slots[i / x.B];
    T* to = cache + slot / kBlock * block_stride + i % x.B * head_stride + slot % kBlock * slot_stride;
    std::memcpy(to, x.at(i), x.E * sizeof(T));
  });
}

#define LOCKSTEP_FOR(T)                                                             \
  template void rms_norm<T>(const Rows<T>&, const Rows<T>*, const T*, float, T*, T*, float*); \
  template void silu_mul<T>(const Rows<T>&, T*);                                    \
  template void rotate<T>(const Rows<T>&, const float*, const float*, T*);          \
  template void scatter<T>(const Rows<T>&, const int64_t*, int64_t, int64_t, int64_t, T*);
LOCKSTEP_FOR(float)
LOCKSTEP_FOR(uint16_t)

} // namespace lockstep
