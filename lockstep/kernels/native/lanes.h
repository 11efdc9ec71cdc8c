// Sixteen floats worked on together, whatever the machine's registers are: one AVX-512 register, two of AVX2, four of
// Arm's or of SSE. Every kernel is written in these lanes, so the order of its sums is the same on all of them.
//
// A product and a sum are one rounding where fma() is written and two where it is not: -ffp-contract=off leaves no choice
// to the compiler, which would choose otherwise in the body of a loop than in its tail.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lockstep {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

#define LOCKSTEP_INLINE inline __attribute__((always_inline))
#define LOCKSTEP_EACH_PART _Pragma("GCC unroll 4") for (int p = 0; p < kParts; ++p)

struct Lanes {
  Floats part[kParts];
};

LOCKSTEP_INLINE Floats fma_part(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  for (int i = 0; i < kWidth; ++i) c[i] = std::fma(a[i], b[i], c[i]); // a call each: slow, and right
  return c;
#endif
}

LOCKSTEP_INLINE Lanes splat(float x) {
  Lanes out;
  LOCKSTEP_EACH_PART out.part[p] = x - Floats{};
  return out;
}

LOCKSTEP_INLINE Lanes operator+(Lanes a, Lanes b) {
  LOCKSTEP_EACH_PART a.part[p] = a.part[p] + b.part[p];
  return a;
}

LOCKSTEP_INLINE Lanes operator-(Lanes a, Lanes b) {
  LOCKSTEP_EACH_PART a.part[p] = a.part[p] - b.part[p];
  return a;
}

LOCKSTEP_INLINE Lanes operator*(Lanes a, Lanes b) {
  LOCKSTEP_EACH_PART a.part[p] = a.part[p] * b.part[p];
  return a;
}

LOCKSTEP_INLINE Lanes operator/(Lanes a, Lanes b) {
  LOCKSTEP_EACH_PART a.part[p] = a.part[p] / b.part[p];
  return a;
}

// a * b + c, rounded once
LOCKSTEP_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  LOCKSTEP_EACH_PART c.part[p] = fma_part(a.part[p], b.part[p], c.part[p]);
  return c;
}

// lanes from `count` on become `value`
LOCKSTEP_INLINE Lanes from_lane(Lanes x, int count, float value) {
  LOCKSTEP_EACH_PART {
    Ints lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = p * kWidth + i;
    x.part[p] = lane < count ? x.part[p] : value - Floats{};
  }
  return x;
}

LOCKSTEP_INLINE Lanes load(const float* x) {
  Lanes out;
  LOCKSTEP_EACH_PART std::memcpy(&out.part[p], x + p * kWidth, sizeof(Floats));
  return out;
}

LOCKSTEP_INLINE void store(float* x, Lanes value) {
  LOCKSTEP_EACH_PART std::memcpy(x + p * kWidth, &value.part[p], sizeof(Floats));
}

// bfloat16 is the upper half of a float: widening is exact
LOCKSTEP_INLINE Lanes load(const uint16_t* x) {
  Lanes out;
  LOCKSTEP_EACH_PART {
    Halves half;
    std::memcpy(&half, x + p * kWidth, sizeof(Halves));
    out.part[p] = (Floats)(__builtin_convertvector(half, Words) << 16);
  }
  return out;
}

// to bfloat16, to nearest, ties to even, as torch rounds (the machine's own instruction flushes denormals)
LOCKSTEP_INLINE void store(uint16_t* x, Lanes value) {
  LOCKSTEP_EACH_PART {
    const Words bits = (Words)value.part[p];
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words kept = value.part[p] == value.part[p] ? rounded : Words{} + 0x7fc0u;
    const Halves half = __builtin_convertvector(kept, Halves);
    std::memcpy(x + p * kWidth, &half, sizeof(Halves));
  }
}

// the last, incomplete lanes of a row: what is past the end reads as zero and is not written
template <typename T>
LOCKSTEP_INLINE Lanes load(const T* x, int count) {
  T whole[kLanes] = {};
  std::memcpy(whole, x, count * sizeof(T));
  return load(whole);
}

template <typename T>
LOCKSTEP_INLINE void store(T* x, Lanes value, int count) {
  T whole[kLanes];
  store(whole, value);
  std::memcpy(x, whole, count * sizeof(T));
}

LOCKSTEP_INLINE float widen(float x) { return x; }

LOCKSTEP_INLINE float widen(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// One tree for every sum over lanes: halves are added until one is left.
LOCKSTEP_INLINE float sum(Lanes x) {
  float v[kLanes];
  store(v, x);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// NaN if the first of two compared is one, so a NaN is not lost: it stays in the sum of the exponentials anyway
LOCKSTEP_INLINE float maximum(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x.part[0]);
#else
  float v[kLanes];
  store(v, x);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = v[i] < v[i + half] ? v[i + half] : v[i];
  return v[0];
#endif
}

// The one exponential: Cody and Waite's reduction to |r| <= ln(2) / 2 and a polynomial of degree 6 (Cephes), about 1 ulp.
// Below -87.3 it is 0 (no denormals), above 88.3 it stays at exp(88.3); exp(0) is 1 exactly; NaN stays NaN.
LOCKSTEP_INLINE Lanes exponential(Lanes argument) {
  LOCKSTEP_EACH_PART {
    const Floats given = argument.part[p];
    const Floats zero = {};
    Floats x = given < -87.3f ? zero - 87.3f : given;
    x = x > 88.3f ? zero + 88.3f : x;
    const Floats shifter = zero + 12582912.0f; // 1.5 * 2^23: the sum's last bits are the nearest integer
    const Floats shifted = fma_part(x, zero + 1.44269504088896341f, shifter);
    const Floats n = shifted - shifter;
    Floats r = fma_part(n, zero - 0.693359375f, x);
    r = fma_part(n, zero + 2.12194440e-4f, r);
    Floats y = zero + 1.9875691500e-4f;
    y = fma_part(y, r, zero + 1.3981999507e-3f);
    y = fma_part(y, r, zero + 8.3334519073e-3f);
    y = fma_part(y, r, zero + 4.1665795894e-2f);
    y = fma_part(y, r, zero + 1.6666665459e-1f);
    y = fma_part(y, r, zero + 5.0000001201e-1f);
    y = fma_part(y * r, r, r + 1.0f);
    const Ints power = (((Ints)shifted - (Ints)shifter) + 127) << 23;
    y = y * (Floats)power;
    argument.part[p] = given < -87.3f ? zero : y;
  }
  return argument;
}

} // namespace lockstep
