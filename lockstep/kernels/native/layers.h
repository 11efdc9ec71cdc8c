// All layers of a forward over paged keys, without gradients: the steps of models/decoder.py, in their order, one after the
// other without a way back to Python in between. Every step is the function that runs alone there, so the bits are.
#pragma once

#include <cstdint>

#include "attention.h"

namespace lockstep {

using Half = uint16_t; // bfloat16, as the bits it is

// One layer. Weights of products are panels (product.h); what a family lacks is null.
struct Layer {
  const Half *input_gain, *qkv, *qkv_bias, *q_gain, *k_gain, *output, *post_gain, *gate_up, *down;
  Half *keys, *values; // [N, K, 16, D], dense
};

struct Stack {
  const Layer* layers;
  int64_t count, tokens, width, inner; // layers, T, E, I
  Heads heads;
  float eps, scale;
  const Half* final_gain;
  const float *cosine, *sine; // [T, D / 2]
  const int64_t* slots;       // [T]
  const Span* spans;
  int64_t num_spans;
  const int64_t* table;
  int tile;
};

// x [T, E] is what goes in; out [T, E] is normalised.
void run(const Stack& stack, const Half* x, Half* out);

} // namespace lockstep
