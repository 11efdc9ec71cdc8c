// The product that all others are made of: up to 32 rows times one panel of a weight, over all of K, in fp32 sums.
//
//   on AMX     tiles of 16 rows by 16 columns; a sum takes 32 inputs at a time, ascending
//   elsewhere  torch's small product (oneDNN's brgemm), always of 32 rows
//
// Either way the arithmetic of a row is the same whatever rows are beside it: a tile instruction works on rows one by
// one, and brgemm is only ever asked for one shape.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define LOCKSTEP_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <mutex>
#include <stdexcept>
#endif

namespace lockstep {

constexpr int kRowBlock = 32; // rows of one small product at most
#if LOCKSTEP_AMX
constexpr int kColumnBlock = 32; // outputs of one panel: two tiles
constexpr int kDepth = 32;       // inputs that one instruction takes; panels are padded to it with zeros
#else
constexpr int kColumnBlock = 64;
constexpr int kDepth = 2;
#endif

inline int64_t deep(int64_t K) { return (K + kDepth - 1) / kDepth * kDepth; }

// Cache lines to ask for while a product runs: the panel that comes next is read while this one is multiplied.
struct Ahead {
  const char* next = nullptr;
  int64_t each = 0; // lines for every kDepth inputs
};

#if LOCKSTEP_AMX

// What a thread needs to use tiles: the kernel's permission, once a process, and the shape of the tiles.
class SmallProduct {
 public:
  static constexpr bool kWholeRows = false; // fewer than 32 rows are taken as they are

  SmallProduct() {
    static std::once_flag asked;
    static long refused;
    constexpr int request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    std::call_once(asked, [] { refused = syscall(SYS_arch_prctl, request, tile_data); });
    if (refused) throw std::runtime_error("the kernel does not permit AMX tiles");
  }
  ~SmallProduct() { _tile_release(); }
  SmallProduct(const SmallProduct&) = delete;

  // sums[r][c] for `rows` rows of x, `stride` apart and K inputs wide (a multiple of kDepth); sums are `width` apart.
  void operator()(const uint16_t* x, int64_t stride, int rows, const uint16_t* panel, int64_t K, float* sums,
                  int64_t width, Ahead& ahead) {
    shape(rows);
    if (rows > 16) run<true>(x, stride, panel, K, sums, width, ahead);
    else run<false>(x, stride, panel, K, sums, width, ahead);
  }

 private:
  // Tiles 0 to 3: sums of the upper and lower rows; 4, 5: rows; 6, 7: the two halves of the panel.
  void shape(int rows) {
    if (rows == rows_) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } tiles;
    const uint8_t upper = std::min(rows, 16), lower = std::max(rows - 16, 1);
    const uint8_t each[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; ++i) tiles.rows[i] = each[i], tiles.bytes[i] = 64;
    _tile_loadconfig(&tiles);
    rows_ = rows;
  }

  template <bool Lower>
  static void run(const uint16_t* x, int64_t stride, const uint16_t* panel, int64_t K, float* sums, int64_t width,
                  Ahead& ahead) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Lower) {
      _tile_zero(2);
      _tile_zero(3);
    }
    const char* next = ahead.next;
    for (int64_t k = 0; k < K; k += kDepth, x += kDepth, panel += kDepth * kColumnBlock) {
      for (int64_t i = 0; i < ahead.each; ++i, next += 64) __builtin_prefetch(next, 0, 2);
      _tile_loadd(4, x, 2 * stride);
      _tile_loadd(6, panel, 4 * kColumnBlock);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, panel + kColumnBlock, 4 * kColumnBlock);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Lower) {
        _tile_loadd(5, x + 16 * stride, 2 * stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    ahead.next = next;
    _tile_stored(0, sums, 4 * width);
    _tile_stored(1, sums + 16, 4 * width);
    if constexpr (Lower) {
      _tile_stored(2, sums + 16 * width, 4 * width);
      _tile_stored(3, sums + 16 * width + 16, 4 * width);
    }
  }

  int rows_ = 0;
};

#else

class SmallProduct {
 public:
  static constexpr bool kWholeRows = true; // x must have 32 rows, whatever they hold

  SmallProduct() = default;
  ~SmallProduct() { at::native::cpublas::brgemm_release(true); } // what the library keeps is this thread's
  SmallProduct(const SmallProduct&) = delete;

  void operator()(const uint16_t* x, int64_t stride, int, const uint16_t* panel, int64_t K, float* sums, int64_t width,
                  Ahead& ahead) {
    for (int64_t i = 0; i < ahead.each * (K / kDepth); ++i, ahead.next += 64) __builtin_prefetch(ahead.next, 0, 2);
    at::native::cpublas::brgemm(kRowBlock, kColumnBlock, K, stride, kColumnBlock, width, false,
                                reinterpret_cast<const at::BFloat16*>(x), reinterpret_cast<const at::BFloat16*>(panel),
                                sums, true);
  }
};

#endif

} // namespace lockstep
