// See layers.h. Memory is taken once and used by every layer, so that it stays near.
#include "layers.h"

#include <memory>

#include "product.h"
#include "rowwise.h"

namespace lockstep {
namespace {

class Forward {
 public:
  explicit Forward(const Stack& s)
      : s_(s), T_(s.tokens), E_(s.width), H_(s.heads.query), K_(s.heads.kv), D_(s.heads.dim), joint_width_((H_ + 2 * K_) * D_) {
    normed_ = halves(T_ * E_), delta_ = halves(T_ * E_);
    for (auto& total : totals_) total = halves(T_ * E_);
    joint_ = halves(T_ * joint_width_), turned_ = halves(T_ * (H_ + K_) * D_), plain_ = halves(T_ * (H_ + K_) * D_);
    seen_ = halves(T_ * H_ * D_), gate_up_ = halves(T_ * 2 * s.inner), inner_ = halves(T_ * s.inner);
    scales_ = std::make_unique_for_overwrite<float[]>(T_ * H_), normaliser_ = std::make_unique_for_overwrite<float[]>(T_ * H_);
  }

  void operator()(const Half* x, Half* out) {
    norm(x, nullptr, s_.layers[0].input_gain, nullptr, normed_.get());
    for (int64_t i = 0; i < s_.count; ++i) {
      const Layer& layer = s_.layers[i];
      project(layer);
      attention(layer);
      linear(seen_.get(), H_ * D_, layer.output, nullptr, E_, delta_.get());
      x = add_norm(x, layer.post_gain, normed_.get());
      linear(normed_.get(), E_, layer.gate_up, nullptr, 2 * s_.inner, gate_up_.get());
      silu_mul<Half>({gate_up_.get(), T_, 1, 2 * s_.inner, 2 * s_.inner, 2 * s_.inner}, inner_.get());
      linear(inner_.get(), s_.inner, layer.down, nullptr, E_, delta_.get());
      const bool last = i + 1 == s_.count;
      x = add_norm(x, last ? s_.final_gain : s_.layers[i + 1].input_gain, last ? out : normed_.get());
    }
  }

 private:
  static std::unique_ptr<Half[]> halves(int64_t count) { return std::make_unique_for_overwrite<Half[]>(count); }

  void linear(const Half* x, int64_t inputs, const Half* panels, const Half* bias, int64_t outputs, Half* out) {
    multiply({x, inputs, T_, inputs, outputs, nullptr, 0, panels, bias, out, false});
  }

  void norm(const Half* x, const Half* delta, const Half* gain, Half* total, Half* out) {
    const Rows<Half> more{delta, T_, 1, E_, E_, E_};
    rms_norm<Half>({x, T_, 1, E_, E_, E_}, delta ? &more : nullptr, gain, s_.eps, total, out, scales_.get());
  }

  // x + delta becomes x; two places take turns
  const Half* add_norm(const Half* x, const Half* gain, Half* out) {
    Half* total = totals_[turn_ = 1 - turn_].get();
    norm(x, delta_.get(), gain, total, out);
    return total;
  }

  // Queries and keys, normalised where the family does that, and rotated.
  void project(const Layer& layer) {
    linear(normed_.get(), E_, layer.qkv, layer.qkv_bias, joint_width_, joint_.get());
    const int64_t both = (H_ + K_) * D_;
    if (!layer.q_gain) {
      rotate<Half>({joint_.get(), T_, H_ + K_, D_, joint_width_, D_}, s_.cosine, s_.sine, turned_.get());
      q_ = turned_.get(), k_ = q_ + H_ * D_, q_row_ = k_row_ = both;
      return;
    }
    Half *q = plain_.get(), *k = q + T_ * H_ * D_;
    rms_norm<Half>({joint_.get(), T_, H_, D_, joint_width_, D_}, nullptr, layer.q_gain, s_.eps, nullptr, q, scales_.get());
    rms_norm<Half>({joint_.get() + H_ * D_, T_, K_, D_, joint_width_, D_}, nullptr, layer.k_gain, s_.eps, nullptr, k,
                   scales_.get());
    Half *q_out = turned_.get(), *k_out = q_out + T_ * H_ * D_;
    rotate<Half>({q, T_, H_, D_, H_ * D_, D_}, s_.cosine, s_.sine, q_out);
    rotate<Half>({k, T_, K_, D_, K_ * D_, D_}, s_.cosine, s_.sine, k_out);
    q_ = q_out, k_ = k_out, q_row_ = H_ * D_, k_row_ = K_ * D_;
  }

  void attention(const Layer& layer) {
    const int64_t slot = D_, head = kBlock * D_, block = K_ * head;
    const Half* v = joint_.get() + (H_ + K_) * D_;
    scatter<Half>({k_, T_, K_, D_, k_row_, D_}, s_.slots, block, head, slot, layer.keys);
    scatter<Half>({v, T_, K_, D_, joint_width_, D_}, s_.slots, block, head, slot, layer.values);
    const Problem<Half> problem{s_.heads, q_, q_row_, D_, {layer.keys, block, head, slot, nullptr},
                                {layer.values, block, head, slot, nullptr}, s_.spans, s_.num_spans, s_.table, s_.scale};
    attend<Half>(problem, s_.tile, seen_.get(), normaliser_.get());
  }

  const Stack& s_;
  const int64_t T_, E_, H_, K_, D_, joint_width_;
  std::unique_ptr<Half[]> normed_, delta_, totals_[2], joint_, turned_, plain_, seen_, gate_up_, inner_;
  std::unique_ptr<float[]> scales_, normaliser_;
  const Half *q_ = nullptr, *k_ = nullptr;
  int64_t q_row_ = 0, k_row_ = 0;
  int turn_ = 0;
};

} // namespace

void run(const Stack& stack, const Half* x, Half* out) {
  Forward forward(stack);
  forward(x, out);
}

} // namespace lockstep
