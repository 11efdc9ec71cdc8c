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
#include <cstring>

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

// Up to 32 rows as the product takes them: `stride` from one row to the next, `step` from kDepth inputs to the next.
struct Block {
  const uint16_t* rows;
  int64_t stride, step;
};

#if LOCKSTEP_AMX

// What a thread needs to use tiles: the kernel's permission, once a process, and the shape of the tiles.
class SmallProduct {
 public:
  SmallProduct() {
    static std::once_flag asked;
    static long refused;
    constexpr int request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    std::call_once(asked, [] { refused = syscall(SYS_arch_prctl, request, tile_data); });
    if (refused) throw std::runtime_error("the kernel does not permit AMX tiles");
  }
  ~SmallProduct() { _tile_release(); }
  SmallProduct(const SmallProduct&) = delete;

  // As tiles, side by side in `to` [deep(K) / 32, 32, 32], which is zero past K: the rows of a decode step are read once
  // for each panel, and a stretch of memory is read faster than rows far apart. Many rows stay where they are.
  static Block lay(const uint16_t* x, int64_t stride, int rows, int64_t K, bool many, uint16_t* to) {
    if (many && K == deep(K)) return {x, stride, kDepth};
    const int64_t whole = K / kDepth * kDepth;
    for (int r = 0; r < rows; ++r, x += stride) {
      uint16_t* row = to + r * kDepth;
      for (int64_t k = 0; k < whole; k += kDepth) std::memcpy(row + k * kRowBlock, x + k, kDepth * sizeof(*x));
      if (whole < K) std::memcpy(row + whole * kRowBlock, x + whole, (K - whole) * sizeof(*x));
    }
    return {to, kDepth, kRowBlock * kDepth};
  }

  // sums[r][c] of `rows` rows; K is deep, rows of sums are `width` apart.
  void operator()(Block block, int rows, const uint16_t* panel, int64_t K, float* sums, int64_t width, Ahead& ahead) {
    shape(rows);
    if (rows > 16) run<true>(block, panel, K, sums, width, ahead);
    else run<false>(block, panel, K, sums, width, ahead);
  }

 private:
  // Tiles 0 to 3: sums of the upper and lower rows; 4, 5: rows; 6, 7: the two halves of the panel, which pass by while
  // the rows stay in the nearest cache.
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
  static void run(Block block, const uint16_t* panel, int64_t K, float* sums, int64_t width, Ahead& ahead) {
    const uint16_t *upper = block.rows, *lower = upper + 16 * block.stride;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Lower) {
      _tile_zero(2);
      _tile_zero(3);
    }
    const char* next = ahead.next;
    for (int64_t k = 0; k < K; k += kDepth, upper += block.step, panel += kDepth * kColumnBlock) {
      for (int64_t i = 0; i < ahead.each; ++i, next += 64) __builtin_prefetch(next, 0, 2);
      _tile_loadd(4, upper, 2 * block.stride);
      _tile_stream_loadd(6, panel, 4 * kColumnBlock);
      _tile_dpbf16ps(0, 4, 6);
      _tile_stream_loadd(7, panel + kColumnBlock, 4 * kColumnBlock);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (Lower) {
        _tile_loadd(5, lower, 2 * block.stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        lower += block.step;
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
  SmallProduct() = default;
  ~SmallProduct() { at::native::cpublas::brgemm_release(true); } // what the library keeps is this thread's
  SmallProduct(const SmallProduct&) = delete;

  // 32 rows are taken as they are; fewer go into `to`, where the others hold what was there before.
  static Block lay(const uint16_t* x, int64_t stride, int rows, int64_t K, bool, uint16_t* to) {
    if (rows == kRowBlock) return {x, stride, kDepth};
    for (int r = 0; r < rows; ++r) std::memcpy(to + r * K, x + r * stride, K * sizeof(*x));
    return {to, K, kDepth};
  }

  void operator()(Block block, int, const uint16_t* panel, int64_t K, float* sums, int64_t width, Ahead& ahead) {
    for (int64_t i = 0; i < ahead.each * (K / kDepth); ++i, ahead.next += 64) __builtin_prefetch(ahead.next, 0, 2);
    at::native::cpublas::brgemm(kRowBlock, kColumnBlock, K, block.stride, kColumnBlock, width, false,
                                reinterpret_cast<const at::BFloat16*>(block.rows),
                                reinterpret_cast<const at::BFloat16*>(panel), sums, true);
  }
};

#endif

} // namespace lockstep
