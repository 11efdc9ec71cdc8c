// Squares of 32-bit words turned in registers. Moves data only.
#pragma once

#include "lanes.h"

namespace lockstep {

#if defined(__clang__) // has other shuffles; the plain loops of the callers run
constexpr bool kTurns = false;
LOCKSTEP_INLINE void transpose(Words*) {}
#else
constexpr bool kTurns = true;

// Swap of off-diagonal blocks of side STEP: lanes of two rows that lie STEP apart.
template <int STEP>
struct Swap {
  uint32_t low[kWidth], high[kWidth];
  constexpr Swap() : low(), high() {
    for (uint32_t i = 0; i < kWidth; ++i) {
      low[i] = i & STEP ? i - STEP + kWidth : i;
      high[i] = i & STEP ? i + kWidth : i + STEP;
    }
  }
};

template <int STEP>
LOCKSTEP_INLINE void swap_blocks(Words* row) {
  static constexpr Swap<STEP> swap{};
  Words low, high;
  std::memcpy(&low, swap.low, sizeof(low));
  std::memcpy(&high, swap.high, sizeof(high));
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i & STEP) continue;
    const Words a = row[i], b = row[i + STEP];
    row[i] = __builtin_shuffle(a, b, low);
    row[i + STEP] = __builtin_shuffle(a, b, high);
  }
}

// A square of kWidth rows.
LOCKSTEP_INLINE void transpose(Words* row) {
  swap_blocks<1>(row);
  swap_blocks<2>(row);
  if constexpr (kWidth > 4) swap_blocks<4>(row);
  if constexpr (kWidth > 8) swap_blocks<8>(row);
}
#endif

} // namespace lockstep
