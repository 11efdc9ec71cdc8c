// The kernels as torch operators. The only file that knows tensors: it checks them, and hands on pointers and strides.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/flatten.h>
#include <ATen/ops/unsqueeze.h>
#include <torch/library.h>

#include "attention.h"
#include "checks.h"
#include "product.h"
#include "rowwise.h"

namespace {

using at::Tensor;
using lockstep::indices;
using lockstep::Problem;
using lockstep::require_within;
using lockstep::Source;
using lockstep::Span;

static_assert(sizeof(Span) == 4 * sizeof(int64_t), "a row of the plan");

// bfloat16 is handled as the bits it is
template <typename T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

Tensor dense_rows(const Tensor& x, at::ScalarType dtype, int64_t dims, const char* name) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, name, ": float32 or bfloat16");
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == dtype && x.dim() == dims,
              name, ": a CPU tensor of ", dims, " dimensions and the dtype of the others");
  return x.stride(-1) == 1 ? x : x.contiguous();
}

// Keys are [N, K, 16, D], or [T, K, D] with `rows`: the packed row of every slot of every block.
template <typename T>
Source<T> source(const Tensor& x, const std::optional<Tensor>& rows) {
  if (rows) return {data<T>(x), 0, x.stride(1), x.stride(0), indices(*rows, "rows")};
  return {data<T>(x), x.stride(0), x.stride(1), x.stride(2), nullptr};
}

void require_problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& plan, const Tensor& table,
                     const std::optional<Tensor>& rows) {
  TORCH_CHECK(k.sizes() == v.sizes() && k.size(-1) == q.size(2) && q.size(1) % k.size(1) == 0,
              "q, k, v: heads must be whole groups, of one size");
  TORCH_CHECK(rows || k.size(2) == lockstep::kBlock, "k: blocks of ", lockstep::kBlock, " keys");
  lockstep::require_plan(plan, table, q.size(0), rows ? rows->size(0) : k.size(0));
  if (rows) indices(*rows, "rows"), require_within(*rows, k.size(0), "rows");
}

template <typename T>
Problem<T> problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& plan, const Tensor& table,
                   const std::optional<Tensor>& rows, double scale) {
  const lockstep::Heads heads{(int)q.size(1), (int)k.size(1), (int)q.size(2)};
  return {heads, data<T>(q), q.stride(0), q.stride(1), source<T>(k, rows), source<T>(v, rows),
          reinterpret_cast<const Span*>(indices(plan, "plan")), plan.size(0), indices(table, "table"), (float)scale};
}

// -> rows [T, H, D] of q's dtype, log-normaliser fp32 [T, H]
std::tuple<Tensor, Tensor> attention(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& plan,
                                     const Tensor& table, const std::optional<Tensor>& rows, int64_t tile, double scale) {
  const auto dtype = q_.scalar_type();
  const Tensor q = dense_rows(q_, dtype, 3, "q");
  const Tensor k = dense_rows(k_, dtype, rows ? 3 : 4, "k"), v = dense_rows(v_, dtype, rows ? 3 : 4, "v");
  require_problem(q, k, v, plan, table, rows);
  TORCH_CHECK(tile > 0, "tile: at least 1 row");
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor normaliser = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  if (dtype == at::kFloat)
    lockstep::attend(problem<float>(q, k, v, plan, table, rows, scale), (int)tile, data<float>(out),
                     data<float>(normaliser));
  else
    lockstep::attend(problem<uint16_t>(q, k, v, plan, table, rows, scale), (int)tile, data<uint16_t>(out),
                     data<float>(normaliser));
  return {out, normaliser};
}

template <typename T>
lockstep::Slope<T> slope(const Tensor& grad, const Tensor& out, const Tensor& normaliser,
                         const std::tuple<Tensor, Tensor, Tensor>& found) {
  const auto& [grad_q, grad_k, grad_v] = found;
  return {data<T>(grad),   data<T>(out),    data<float>(normaliser), data<T>(grad_q),
          data<T>(grad_k), data<T>(grad_v), grad_k.size(0)};
}

// -> gradients of q, k and v in their dtype, of packed rows and what `attention` gave for them
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_, const at::TensorList& passed,
                                                      const Tensor& plan, const Tensor& table, const Tensor& rows,
                                                      double scale) {
  TORCH_CHECK(passed.size() == 5, "passed: q, k, v, out and normaliser");
  const auto dtype = grad_.scalar_type();
  const Tensor q = dense_rows(passed[0], dtype, 3, "q");
  const Tensor k = dense_rows(passed[1], dtype, 3, "k"), v = dense_rows(passed[2], dtype, 3, "v");
  const Tensor grad = grad_.contiguous(), &out = passed[3], &normaliser = passed[4];
  require_problem(q, k, v, plan, table, rows);
  TORCH_CHECK(grad.sizes() == q.sizes() && out.sizes() == q.sizes() && out.is_contiguous() &&
                  out.scalar_type() == dtype && normaliser.is_contiguous() && normaliser.scalar_type() == at::kFloat &&
                  normaliser.numel() == q.size(0) * q.size(1),
              "grad, out, normaliser: as attention gave them");
  const auto options = q.options();
  const std::tuple<Tensor, Tensor, Tensor> found{at::empty(q.sizes(), options), at::empty(k.sizes(), options),
                                                 at::empty(v.sizes(), options)};
  if (dtype == at::kFloat)
    lockstep::descend(problem<float>(q, k, v, plan, table, rows, scale), slope<float>(grad, out, normaliser, found));
  else
    lockstep::descend(problem<uint16_t>(q, k, v, plan, table, rows, scale),
                      slope<uint16_t>(grad, out, normaliser, found));
  return found;
}

// [O, K] -> panels [count, depth / 2, columns, 2]
Tensor pack(const Tensor& weight_) {
  const Tensor weight = dense_rows(weight_, at::kBFloat16, 2, "weight");
  const int64_t O = weight.size(0), K = weight.size(1);
  TORCH_CHECK(K % 2 == 0, "weight: an even number of inputs");
  const lockstep::Panels shape = lockstep::panels_of(O, K);
  Tensor panels = at::empty({shape.count, shape.depth / 2, shape.columns, 2}, weight.options());
  lockstep::pack_panels(data<uint16_t>(weight), weight.stride(0), O, K, data<uint16_t>(panels));
  return panels;
}

// x [N, K] times weight [O, K] or its panels, plus bias -> [N, O], rounded to bfloat16 or, if wide, not
Tensor product(const Tensor& x_, const Tensor& weight_, const std::optional<Tensor>& bias, int64_t O, bool wide) {
  const Tensor x = dense_rows(x_, at::kBFloat16, 2, "x");
  const bool packed = weight_.dim() == 4;
  const Tensor weight = dense_rows(weight_, at::kBFloat16, packed ? 4 : 2, "weight");
  const int64_t N = x.size(0), K = x.size(1);
  const lockstep::Panels shape = lockstep::panels_of(O, K);
  TORCH_CHECK(K % 2 == 0 && (packed ? weight.is_contiguous() && weight.size(0) == shape.count &&
                                          2 * weight.size(1) == shape.depth && weight.size(2) == shape.columns
                                    : weight.size(0) == O && weight.size(1) == K),
              "weight: does not fit rows of ", K, " and ", O, " outputs");
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->scalar_type() == at::kBFloat16 && bias->numel() == O),
              "bias: one bfloat16 for each output");
  Tensor out = at::empty({N, O}, x.options().dtype(wide ? at::kFloat : at::kBFloat16));
  lockstep::multiply({data<uint16_t>(x), x.stride(0), N, K, O, packed ? nullptr : data<uint16_t>(weight),
                      weight.stride(0), packed ? data<uint16_t>(weight) : nullptr,
                      bias ? data<uint16_t>(*bias) : nullptr, out.data_ptr(), wide});
  return out;
}

// Leading dimensions become at most two: tokens and heads.
Tensor tokens_and_heads(const Tensor& x, const char* name) {
  const Tensor flat = x.dim() > 3 ? x.flatten(0, -3) : x.dim() == 2 ? x.unsqueeze(1) : x;
  return dense_rows(flat, x.scalar_type(), 3, name);
}

template <typename T>
lockstep::Rows<T> rows_of(const Tensor& x) {
  return {data<T>(x), x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

// Calls body(T{}) with the type that holds the dtype.
template <typename Body>
void with_type(const Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) body(float{});
  else body(uint16_t{});
}

// -> x + delta (undefined without one), its norm, and the factor of each row [..., 1]
std::tuple<Tensor, Tensor, Tensor> norm(const Tensor& x_, const std::optional<Tensor>& delta_, const Tensor& gain,
                                        double eps) {
  const Tensor x = tokens_and_heads(x_, "x");
  TORCH_CHECK(gain.is_contiguous() && gain.scalar_type() == x.scalar_type() && gain.numel() == x.size(-1),
              "gain: one for each column, in the dtype of x");
  TORCH_CHECK(!delta_ || (delta_->sizes() == x_.sizes() && delta_->scalar_type() == x.scalar_type()), "delta: as x");
  const Tensor delta = delta_ ? tokens_and_heads(*delta_, "delta") : Tensor();
  Tensor out = at::empty(x_.sizes(), x_.options()), total = delta_ ? at::empty(x_.sizes(), x_.options()) : Tensor();
  auto shape = x_.sizes().vec();
  shape.back() = 1;
  Tensor scale = at::empty(shape, x_.options().dtype(at::kFloat));
  with_type(x, [&](auto t) {
    using T = decltype(t);
    const auto more = delta_ ? rows_of<T>(delta) : lockstep::Rows<T>{};
    lockstep::rms_norm<T>(rows_of<T>(x), delta_ ? &more : nullptr, data<T>(gain), (float)eps,
                          delta_ ? data<T>(total) : nullptr, data<T>(out), data<float>(scale));
  });
  return {total, out, scale};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& gain, double eps) {
  auto [_, out, scale] = norm(x, std::nullopt, gain, eps);
  return {out, scale};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& gain, double eps) {
  return norm(x, delta, gain, eps);
}

// [..., 2 I] -> [..., I]
Tensor silu_mul(const Tensor& x_) {
  const Tensor x = tokens_and_heads(x_, "gate_up");
  TORCH_CHECK(x.size(-1) % 2 == 0, "gate_up: an even number of columns");
  auto shape = x_.sizes().vec();
  shape.back() /= 2;
  Tensor out = at::empty(shape, x_.options());
  with_type(x, [&](auto t) { lockstep::silu_mul<decltype(t)>(rows_of<decltype(t)>(x), data<decltype(t)>(out)); });
  return out;
}

// x [T, H, D], cosines and sines fp32 [T, 1, D / 2]
Tensor rotate(const Tensor& x_, const Tensor& cosine, const Tensor& sine) {
  const Tensor x = dense_rows(x_, x_.scalar_type(), 3, "x");
  for (const Tensor* angle : {&cosine, &sine})
    TORCH_CHECK(angle->is_contiguous() && angle->scalar_type() == at::kFloat && x.size(2) % 2 == 0 &&
                    angle->numel() == x.size(0) * (x.size(2) / 2),
                "cosines, sines: fp32, one for each token and pair of columns");
  Tensor out = at::empty(x.sizes(), x.options());
  with_type(x, [&](auto t) {
    using T = decltype(t);
    lockstep::rotate<T>(rows_of<T>(x), data<float>(cosine), data<float>(sine), data<T>(out));
  });
  return out;
}

// rows [T, K, D] into cache [N, K, 16, D], in place
void write(const Tensor& cache, const Tensor& rows_, const Tensor& slots) {
  const Tensor rows = dense_rows(rows_, cache.scalar_type(), 3, "rows");
  TORCH_CHECK(cache.device().is_cpu() && cache.dim() == 4 && cache.stride(3) == 1 && cache.size(1) == rows.size(1) &&
                  cache.size(2) == lockstep::kBlock && cache.size(3) == rows.size(2) && slots.numel() == rows.size(0),
              "cache, rows, slots: do not fit");
  with_type(rows, [&](auto t) {
    using T = decltype(t);
    lockstep::scatter<T>(rows_of<T>(rows), slots.const_data_ptr<int64_t>(), cache.stride(0), cache.stride(1),
                         cache.stride(2), data<T>(cache));
  });
}

void write_kv(const Tensor& keys, const Tensor& values, const Tensor& k, const Tensor& v, const Tensor& slots) {
  TORCH_CHECK(keys.sizes() == values.sizes(), "keys, values: of one size");
  indices(slots, "slots");
  require_within(slots, keys.size(0) * lockstep::kBlock, "slots");
  write(keys, k, slots);
  write(values, v, slots);
}

} // namespace

TORCH_LIBRARY(lockstep, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor plan, Tensor table, Tensor? rows, int tile, float scale)"
        " -> (Tensor, Tensor)", &attention);
  m.def("attention_backward(Tensor grad, Tensor[] passed, Tensor plan, Tensor table, Tensor rows, float scale)"
        " -> (Tensor, Tensor, Tensor)", &attention_backward);
  m.def("pack(Tensor weight) -> Tensor", &pack);
  m.def("product(Tensor x, Tensor weight, Tensor? bias, int outputs, bool wide) -> Tensor", &product);
  m.def("rms_norm(Tensor x, Tensor gain, float eps) -> (Tensor, Tensor)", &rms_norm);
  m.def("add_rms_norm(Tensor x, Tensor delta, Tensor gain, float eps) -> (Tensor, Tensor, Tensor)", &add_rms_norm);
  m.def("silu_mul(Tensor gate_up) -> Tensor", &silu_mul);
  m.def("rotate(Tensor x, Tensor cosine, Tensor sine) -> Tensor", &rotate);
  m.def("write_kv(Tensor(a!) keys, Tensor(b!) values, Tensor k, Tensor v, Tensor slots) -> ()", &write_kv);
}
