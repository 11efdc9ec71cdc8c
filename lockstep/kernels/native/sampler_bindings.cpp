// The sampler's row as torch operators: checks tensors, and hands on pointers.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <numeric>

#include "sampler.h"

namespace {

using at::Tensor;

lockstep::Logits logits_of(const Tensor& x) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 2 && x.stride(1) == 1 && x.size(1) > 0,
              "logits: rows of float32 on the CPU");
  return {x.const_data_ptr<float>(), x.size(0), x.size(1), x.stride(0)};
}

void require(const Tensor& x, at::ScalarType dtype, int64_t count, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == dtype && x.is_contiguous() && x.numel() == count,
              name, ": a contiguous CPU tensor of ", count, " ", dtype);
}

const int64_t* targets(const Tensor& ids, const lockstep::Logits& logits) {
  require(ids, at::kLong, logits.N, "ids");
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < logits.N; ++i)
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < logits.V, "ids: ", id[i], " is not below ", logits.V);
  return id;
}

lockstep::Kept kept_of(const std::optional<Tensor>& ids, const std::optional<Tensor>& offsets,
                       const lockstep::Logits& logits) {
  if (!ids) return {};
  TORCH_CHECK(offsets.has_value(), "kept: ids come with offsets");
  require(*ids, at::kInt, ids->numel(), "kept");
  require(*offsets, at::kLong, logits.N + 1, "offsets");
  const int32_t* id = ids->const_data_ptr<int32_t>();
  const int64_t* at = offsets->const_data_ptr<int64_t>();
  TORCH_CHECK_INDEX(at[0] >= 0 && at[logits.N] <= ids->numel(), "offsets: beyond the ids");
  for (int64_t i = 0; i < logits.N; ++i) TORCH_CHECK_INDEX(at[i] <= at[i + 1], "offsets: must not fall");
  for (int64_t i = at[0]; i < at[logits.N]; ++i)
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < logits.V, "kept: ", id[i], " is not below ", logits.V);
  static const int32_t nothing = 0; // an empty tensor has no memory, and is a support all the same
  return {id ? id : &nothing, at};
}

// settings float64 [N, 7]: 1 / temperature is made here, from temperature, uniform, greedy, truncates, top_k, top_p, min_p
// -> ids [N], logprobs [N], and of rows that truncate what they kept: ids, offsets [N + 1]
std::tuple<Tensor, Tensor, Tensor, Tensor> draw(const Tensor& x, const Tensor& settings) {
  const auto logits = logits_of(x);
  require(settings, at::kDouble, 7 * logits.N, "settings");
  std::vector<lockstep::Draw> how;
  const double* s = settings.const_data_ptr<double>();
  for (int64_t i = 0; i < logits.N; ++i, s += 7)
    how.push_back({1.0f / (float)s[0], s[1], s[2] != 0, s[3] != 0, (int64_t)s[4], s[5], (float)s[6]});
  Tensor ids = at::empty({logits.N}, x.options().dtype(at::kLong)), logprobs = at::empty({logits.N}, x.options());
  lockstep::Drawn drawn{ids.data_ptr<int64_t>(), logprobs.data_ptr<float>(), {}};
  lockstep::draw(logits, how.data(), drawn);
  Tensor offsets = at::empty({logits.N + 1}, ids.options());
  int64_t* offset = offsets.data_ptr<int64_t>();
  offset[0] = 0;
  for (int64_t i = 0; i < logits.N; ++i) offset[i + 1] = offset[i] + (int64_t)drawn.kept[i].size();
  Tensor kept = at::empty({offset[logits.N]}, x.options().dtype(at::kInt));
  for (int64_t i = 0; i < logits.N; ++i)
    std::copy(drawn.kept[i].begin(), drawn.kept[i].end(), kept.data_ptr<int32_t>() + offset[i]);
  return {ids, logprobs, kept, offsets};
}

// -> logprobs [N], entropies [N], totals float64 [N, 2]
std::tuple<Tensor, Tensor, Tensor> score(const Tensor& x, const Tensor& ids, double temperature,
                                         const std::optional<Tensor>& kept, const std::optional<Tensor>& offsets) {
  const auto logits = logits_of(x);
  Tensor logprobs = at::empty({logits.N}, x.options()), entropy = at::empty({logits.N}, x.options());
  Tensor totals = at::empty({logits.N, 2}, x.options().dtype(at::kDouble));
  lockstep::score(logits, targets(ids, logits), 1.0f / (float)temperature, kept_of(kept, offsets, logits),
                  logprobs.data_ptr<float>(), entropy.data_ptr<float>(), totals.data_ptr<double>());
  return {logprobs, entropy, totals};
}

// -> slopes [N, V], bfloat16 if narrow
Tensor slope(const Tensor& x, const Tensor& ids, double temperature, const std::optional<Tensor>& kept,
             const std::optional<Tensor>& offsets, at::TensorList passed, bool narrow) {
  const auto logits = logits_of(x);
  TORCH_CHECK(passed.size() == 2, "passed: totals as score gave them, and the gradient");
  require(passed[0], at::kDouble, 2 * logits.N, "totals");
  require(passed[1], at::kFloat, logits.N, "grad");
  const float scale = 1.0f / (float)temperature;
  const auto support = kept_of(kept, offsets, logits);
  const int64_t* id = targets(ids, logits);
  const double* totals = passed[0].const_data_ptr<double>();
  const float* grad = passed[1].const_data_ptr<float>();
  Tensor out = at::empty({logits.N, logits.V}, x.options().dtype(narrow ? at::kBFloat16 : at::kFloat));
  if (narrow) lockstep::slope(logits, id, scale, support, totals, grad, static_cast<uint16_t*>(out.data_ptr()));
  else lockstep::slope(logits, id, scale, support, totals, grad, out.data_ptr<float>());
  return out;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(lockstep, m) {
  m.def("draw(Tensor logits, Tensor settings) -> (Tensor, Tensor, Tensor, Tensor)", &draw);
  m.def("score(Tensor logits, Tensor ids, float temperature, Tensor? kept, Tensor? offsets)"
        " -> (Tensor, Tensor, Tensor)", &score);
  m.def("slope(Tensor logits, Tensor ids, float temperature, Tensor? kept, Tensor? offsets, Tensor[] passed,"
        " bool narrow) -> Tensor", &slope);
}
