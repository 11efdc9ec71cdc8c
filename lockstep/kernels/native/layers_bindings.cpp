// The layers as a torch operator: tensors are checked here, and become pointers.
#include <ATen/core/Tensor.h>
#include <ATen/core/List.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "checks.h"
#include "layers.h"
#include "product.h"

namespace {

using at::Tensor;
using lockstep::Half;
using Parts = c10::List<std::optional<Tensor>>;

constexpr int64_t kParts = 9; // of a layer, in the order of lockstep::Layer

void require(const Tensor& x, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == dtype && x.is_contiguous(), name,
              ": contiguous, on the CPU, of its dtype");
}

const Half* vector(const std::optional<Tensor>& x, int64_t size, bool may_lack, const char* name) {
  if (!x && may_lack) return nullptr;
  TORCH_CHECK(x, name, ": missing");
  require(*x, at::kBFloat16, name);
  TORCH_CHECK(x->numel() == size, name, ": ", x->numel(), " numbers, expected ", size);
  return static_cast<const Half*>(x->data_ptr());
}

const Half* panels(const std::optional<Tensor>& x, int64_t outputs, int64_t inputs, const char* name) {
  TORCH_CHECK(x, name, ": missing");
  require(*x, at::kBFloat16, name);
  const lockstep::Panels shape = lockstep::panels_of(outputs, inputs);
  TORCH_CHECK(x->dim() == 4 && x->size(0) == shape.count && 2 * x->size(1) == shape.depth && x->size(2) == shape.columns,
              name, ": not the panels of ", outputs, " x ", inputs);
  return static_cast<const Half*>(x->data_ptr());
}

// x [T, E]; parts 9 a layer and the last gain; cache [L, 2, N, K, 16, D], written; angles fp32 [T, 1, D / 2] twice;
// where: plan, table and slots as `attention` and `write_kv` take them -> normalised rows [T, E]
Tensor layers(const Tensor& x, const Parts& parts, const Tensor& cache, const at::TensorList& angles,
              const at::TensorList& where, at::IntArrayRef sizes, double eps, double scale) {
  TORCH_CHECK(x.dim() == 2 && cache.dim() == 6 && angles.size() == 2 && where.size() == 3 && sizes.size() == 3,
              "layers: wrong number of arguments");
  require(x, at::kBFloat16, "x");
  require(cache, at::kBFloat16, "cache");
  const int64_t T = x.size(0), E = x.size(1), H = sizes[0], inner = sizes[1], tile = sizes[2], L = cache.size(0);
  const int64_t N = cache.size(2), K = cache.size(3), D = cache.size(5), page = N * K * cache.size(4) * D;
  TORCH_CHECK(cache.size(1) == 2 && cache.size(4) == lockstep::kBlock && H % K == 0 && D % 2 == 0 && tile > 0 &&
                  (int64_t)parts.size() == kParts * L + 1,
              "layers: parts and cache do not fit");
  for (const Tensor& angle : angles) {
    require(angle, at::kFloat, "angles");
    TORCH_CHECK(angle.numel() == T * D / 2, "angles: one for each token and pair of columns");
  }
  lockstep::require_plan(where[0], where[1], T, N);
  TORCH_CHECK(lockstep::indices(where[2], "slots") && where[2].numel() == T, "slots: one for each token");
  lockstep::require_within(where[2], N * lockstep::kBlock, "slots");
  std::vector<lockstep::Layer> stack(L);
  Half* base = static_cast<Half*>(cache.data_ptr());
  for (int64_t i = 0; i < L; ++i) {
    const auto part = [&](int64_t j) { return parts.get(i * kParts + j); };
    stack[i] = {vector(part(0), E, false, "input norm"), panels(part(1), (H + 2 * K) * D, E, "qkv"),
                vector(part(2), (H + 2 * K) * D, true, "qkv bias"), vector(part(3), D, true, "q norm"),
                vector(part(4), D, true, "k norm"), panels(part(5), E, H * D, "output"),
                vector(part(6), E, false, "post norm"), panels(part(7), 2 * inner, E, "gate_up"),
                panels(part(8), E, inner, "down"), base + 2 * i * page, base + (2 * i + 1) * page};
    TORCH_CHECK(!stack[i].q_gain == !stack[i].k_gain, "q norm, k norm: both or none");
  }
  Tensor out = at::empty_like(x);
  lockstep::run({stack.data(), L, T, E, inner, {(int)H, (int)K, (int)D}, (float)eps, (float)scale,
                 vector(parts.get(kParts * L), E, false, "norm"), angles[0].const_data_ptr<float>(),
                 angles[1].const_data_ptr<float>(), where[2].const_data_ptr<int64_t>(),
                 reinterpret_cast<const lockstep::Span*>(where[0].const_data_ptr<int64_t>()), where[0].size(0),
                 where[1].const_data_ptr<int64_t>(), (int)tile},
                static_cast<const Half*>(x.data_ptr()), static_cast<Half*>(out.data_ptr()));
  return out;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(lockstep, m) {
  m.def("layers(Tensor x, Tensor?[] parts, Tensor(a!) cache, Tensor[] angles, Tensor[] where, int[] sizes, float eps,"
        " float scale) -> Tensor", &layers);
}
