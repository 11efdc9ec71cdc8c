// What is asked of indices before they become pointers: a wrong one must be an error, not a wild read.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention.h"

namespace lockstep {

inline const int64_t* indices(const at::Tensor& x, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kLong && x.is_contiguous(), name, ": int64 and contiguous");
  return x.const_data_ptr<int64_t>();
}

inline void require_within(const at::Tensor& x, int64_t end, const char* name) {
  const int64_t* id = x.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < x.numel(); ++i)
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < end, name, ": ", id[i], " is not below ", end);
}

// A plan int64 [S, 4] of `rows` packed rows, over the `blocks` that the table names.
inline void require_plan(const at::Tensor& plan, const at::Tensor& table, int64_t rows, int64_t blocks) {
  indices(plan, "plan"), indices(table, "table");
  const Span* spans = reinterpret_cast<const Span*>(plan.const_data_ptr<int64_t>());
  for (int64_t s = 0; s < plan.size(0); ++s) {
    const int64_t needed = (spans[s].start + spans[s].count + kBlock - 1) / kBlock;
    TORCH_CHECK_INDEX(spans[s].start >= 0 && spans[s].count > 0 && spans[s].row >= 0 && spans[s].table >= 0 &&
                          spans[s].row + spans[s].count <= rows && spans[s].table + needed <= table.numel(),
                      "plan: sequence ", s, " has rows or blocks that do not exist");
  }
  require_within(table, blocks, "table");
}

} // namespace lockstep
