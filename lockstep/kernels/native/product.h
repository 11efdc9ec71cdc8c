// Rows times a weight, in bfloat16 with fp32 sums, whatever the number of rows.
#pragma once

#include <cstdint>

namespace lockstep {

constexpr int kRowBlock = 32;    // rows of one small product, always: the last block is padded
constexpr int kColumnBlock = 64; // outputs of one panel of a weight

// A weight [O, K] as panels [O / 64, K / 2, 64, 2]: the pairs of inputs that one instruction takes, side by side.
// O is padded with zeros; K must be even.
void pack_panels(const uint16_t* weight, int64_t stride, int64_t O, int64_t K, uint16_t* panels);

struct Product {
  const uint16_t* x; // [N, K]
  int64_t x_stride, N, K, O;
  const uint16_t* weight; // [O, K], or null with panels
  int64_t weight_stride;
  const uint16_t* panels; // or null
  const uint16_t* bias;   // [O] or null
  void* out;              // [N, O], dense
  bool wide;              // out is fp32: the sums themselves
};

void multiply(const Product& product);

} // namespace lockstep
