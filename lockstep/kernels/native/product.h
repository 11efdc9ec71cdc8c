// Rows times a weight, in bfloat16 with fp32 sums, whatever the number of rows.
#pragma once

#include <cstdint>

namespace lockstep {

// The shape of a packed weight [O, K]: panels of `columns` outputs, each [depth / 2, columns, 2]: the pairs of inputs
// that one instruction takes, side by side. O and K are padded with zeros; K must be even.
struct Panels {
  int64_t count, depth, columns;
};

Panels panels_of(int64_t O, int64_t K);

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
