// A matrix product whose rows cannot depend on their number: it is made of one small product (small_product.h), of one
// block of rows with one panel of the weight after the other. Which thread does a block, and how many there are, moves
// nothing.
//
// A panel of an unpacked weight is packed into the thread's scratch and used at once by every row, so that the packed
// copy never leaves the cache. For more rows than kFused the whole weight is packed first.
#include "product.h"

#include <vector>

#include "lanes.h"
#include "scratch.h"
#include "small_product.h"
#include "threads.h"
#include "transpose.h"

namespace lockstep {
namespace {

constexpr int64_t kNear = 384 << 10; // bytes of rows, and of panels, that stay in the cache together
constexpr int64_t kFused = 512;
constexpr int64_t kFew = 64;   // rows whose time is that of reading the weight
constexpr double kGrain = 4e6; // multiplications that pay for waking a thread
constexpr int64_t kReading = 16; // rows whose multiplications take as long as reading the weight does

// One panel: columns [first, first + 64) of the weight's outputs.
void pack_panel(const uint16_t* weight, int64_t stride, int64_t O, int64_t K, int64_t first, uint16_t* panel) {
  const int columns = (int)std::min<int64_t>(kColumnBlock, O - first);
  int64_t k = 0;
  if (kTurns && columns == kColumnBlock)
    for (; k + 2 * kWidth <= K; k += 2 * kWidth)
      for (int o = 0; o < kColumnBlock; o += kWidth) {
        Words square[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) std::memcpy(&square[i], weight + (first + o + i) * stride + k, sizeof(Words));
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          std::memcpy(panel + (k / 2 + i) * 2 * kColumnBlock + 2 * o, &square[i], sizeof(Words));
      }
  for (; k < K; k += 2)
    for (int o = 0; o < kColumnBlock; ++o)
      for (int i = 0; i < 2; ++i)
        panel[(k / 2) * 2 * kColumnBlock + 2 * o + i] = o < columns ? weight[(first + o) * stride + k + i] : 0;
  std::memset(panel + K * kColumnBlock, 0, (deep(K) - K) * kColumnBlock * sizeof(*panel));
}

class Worker {
 public:
  Worker(const Product& p, int64_t chunk)
      : p_(p), chunk_(chunk), depth_(deep(p.K)),
        scratch_(kRowBlock * kColumnBlock + (kSlots * kRowBlock + kColumnBlock) * depth_ / 2) {
    sums_ = scratch_.take(kRowBlock * kColumnBlock);
    panel_ = reinterpret_cast<uint16_t*>(scratch_.take(kColumnBlock * depth_ / 2));
    rows_ = reinterpret_cast<uint16_t*>(scratch_.take(kSlots * kRowBlock * depth_ / 2));
  }
  Worker(const Worker&) = delete;

  // Rows of one chunk times some panels. Few rows: a panel meets them all while the next one comes in. Many: a block of
  // rows meets one panel after the other while its outputs are near.
  void run(int64_t row_chunk, int64_t first_panel, int64_t end_panel) {
    const int64_t start = row_chunk * chunk_, end = std::min(p_.N, start + chunk_);
    if (p_.panels && p_.N <= kFew) {
      const int64_t lines = depth_ * kColumnBlock / 32, blocks = (end - start + kRowBlock - 1) / kRowBlock;
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        Ahead ahead{reinterpret_cast<const char*>(p_.panels + (panel + 1) * depth_ * kColumnBlock),
                    panel + 1 < end_panel ? lines * kDepth / (depth_ * blocks) : 0};
        for (int64_t i = 0; i < blocks; ++i) { // to and fro: the rows that met the last panel are the nearest
          const int64_t n = start + (panel % 2 ? blocks - 1 - i : i) * kRowBlock;
          block(n, std::min<int64_t>(kRowBlock, end - n), panel, ahead);
        }
      }
      return;
    }
    Ahead none;
    for (int64_t n = start; n < end; n += kRowBlock)
      for (int64_t panel = first_panel; panel < end_panel; ++panel)
        block(n, std::min<int64_t>(kRowBlock, end - n), panel, none);
  }

 private:
  void block(int64_t n, int64_t rows, int64_t panel, Ahead& ahead) {
    const int64_t first = panel * kColumnBlock;
    const uint16_t* weight = p_.panels + panel * depth_ * kColumnBlock;
    if (!p_.panels) {
      if (packed_ != panel) pack_panel(p_.weight, p_.weight_stride, p_.O, p_.K, first, panel_);
      packed_ = panel, weight = panel_;
    }
    const Block x = laid(n, rows);
    if (p_.wide && !p_.bias && rows == kRowBlock && first + kColumnBlock <= p_.O) { // nothing to do with the sums
      multiply_(x, rows, weight, depth_, static_cast<float*>(p_.out) + n * p_.O + first, p_.O, ahead);
      return;
    }
    multiply_(x, rows, weight, depth_, sums_, kColumnBlock, ahead);
    if (p_.wide) finish(static_cast<float*>(p_.out), n, rows, first);
    else finish(static_cast<uint16_t*>(p_.out), n, rows, first);
  }

  // Rows are laid out once for all panels that follow; few rows all stay.
  Block laid(int64_t n, int64_t rows) {
    const int slot = (int)(n / kRowBlock % kSlots);
    if (laid_[slot] != n) {
      uint16_t* to = rows_ + slot * kRowBlock * depth_;
      block_[slot] = SmallProduct::lay(p_.x + n * p_.x_stride, p_.x_stride, (int)rows, p_.K, p_.N > kFew, to);
    }
    laid_[slot] = n;
    return block_[slot];
  }

  // Bias, rounding, and out they go.
  template <typename T>
  void finish(T* out, int64_t n, int64_t rows, int64_t first) {
    const int columns = (int)std::min<int64_t>(kColumnBlock, p_.O - first);
    float bias[kColumnBlock] = {};
    if (p_.bias)
      for (int c = 0; c < columns; ++c) bias[c] = widen(p_.bias[first + c]);
    for (int64_t r = 0; r < rows; ++r)
      for (int c = 0; c < columns; c += kLanes) {
        Lanes value = load(sums_ + r * kColumnBlock + c);
        if (p_.bias) value = value + load(bias + c);
        T* to = out + (n + r) * p_.O + first + c;
        if (columns - c >= kLanes) store(to, value);
        else store(to, value, columns - c);
      }
  }

  const Product& p_;
  const int64_t chunk_; // rows
  const int64_t depth_; // inputs of a panel
  Scratch scratch_;
  SmallProduct multiply_;
  float* sums_;
  uint16_t *panel_, *rows_;
  int64_t packed_ = -1;
  static constexpr int kSlots = kFew / kRowBlock;
  Block block_[kSlots];
  int64_t laid_[kSlots] = {-1, -1};
};

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

} // namespace

Panels panels_of(int64_t O, int64_t K) { return {blocks(O, kColumnBlock), deep(K), kColumnBlock}; }

void pack_panels(const uint16_t* weight, int64_t stride, int64_t O, int64_t K, uint16_t* panels) {
  share(blocks(O, kColumnBlock), (double)O * K, 1e5, [&] {
    return [&](int64_t i) { pack_panel(weight, stride, O, K, i * kColumnBlock, panels + i * deep(K) * kColumnBlock); };
  });
}

void multiply(const Product& given) {
  Product p = given;
  std::unique_ptr<Scratch> copy;
  const int64_t panels = blocks(p.O, kColumnBlock);
  if (!p.panels && p.N > kFused) {
    copy = std::make_unique<Scratch>(panels * kColumnBlock * deep(p.K) / 2);
    uint16_t* to = reinterpret_cast<uint16_t*>(copy->take(0));
    pack_panels(p.weight, p.weight_stride, p.O, p.K, to);
    p.panels = to;
  }
  const int64_t near = kNear / (2 * p.K), chunk = std::max<int64_t>(1, near / kRowBlock) * kRowBlock;
  const int64_t chunks = blocks(p.N, chunk), group = std::max<int64_t>(1, near / kColumnBlock);
  // Few rows: each thread reads one stretch of the weight. More: rows of x stay while a group of panels passes;
  // unpacked, a panel stays while the rows pass.
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t several = p.panels && p.N <= kFew                        ? blocks(panels, threads)
                          : p.panels && chunks * panels >= 4 * group * threads ? group
                                                                               : 1;
  const int64_t groups = blocks(panels, several);
  share(chunks * groups, (double)std::max(p.N, kReading) * p.O * p.K, kGrain, [&] {
    return [&, worker = std::make_unique<Worker>(p, chunk)](int64_t item) {
      const int64_t rows = p.panels ? item / groups : item % chunks, first = p.panels ? item % groups : item / chunks;
      worker->run(rows, first * several, std::min(panels, (first + 1) * several));
    };
  });
}

} // namespace lockstep
