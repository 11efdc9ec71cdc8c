// A matrix product whose rows cannot depend on their number: torch's small product (oneDNN's brgemm, on AMX tiles or
// AVX-512) is only ever asked for 32 rows by 64 columns over all of K, one panel of the weight after the other. Which
// thread does a block, and how many there are, moves nothing.
//
// A panel of an unpacked weight is packed into the thread's scratch and used at once by every row, so that the packed
// copy never leaves the cache. For more rows than kFused the whole weight is packed first.
#include "product.h"

#include <ATen/native/CPUBlas.h>

#include <vector>

#include "lanes.h"
#include "scratch.h"
#include "threads.h"
#include "transpose.h"

namespace lockstep {
namespace {

namespace blas = at::native::cpublas;

constexpr int64_t kNear = 384 << 10; // bytes of rows, and of panels, that stay in the cache together
constexpr int64_t kFused = 512;
constexpr int64_t kFew = 64;
constexpr double kGrain = 4e6; // multiplications that pay for waking a thread

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
}

class Worker {
 public:
  Worker(const Product& p, int64_t chunk)
      : p_(p), chunk_(chunk), scratch_(kRowBlock * kColumnBlock + (kRowBlock + kColumnBlock) * (p.K + kLanes) / 2) {
    sums_ = scratch_.take(kRowBlock * kColumnBlock);
    panel_ = reinterpret_cast<uint16_t*>(scratch_.take(kColumnBlock * p.K / 2));
    rows_ = reinterpret_cast<uint16_t*>(scratch_.take(kRowBlock * p.K / 2));
  }
  ~Worker() { blas::brgemm_release(true); } // the tiles are this thread's
  Worker(const Worker&) = delete;

  // Rows of one chunk times some panels: a block of rows meets one panel after the other while its outputs are near.
  void run(int64_t row_chunk, int64_t first_panel, int64_t end_panel) {
    const int64_t end = std::min(p_.N, (row_chunk + 1) * chunk_);
    for (int64_t n = row_chunk * chunk_; n < end; n += kRowBlock)
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        if (p_.panels && p_.N <= kFew) prefetch(panel + 1);
        block(n, std::min<int64_t>(kRowBlock, end - n), panel);
      }
  }

 private:
  // With few rows the time is that of reading the weight: the next panel comes in while this one is worked on.
  void prefetch(int64_t panel) {
    if ((panel + 1) * kColumnBlock > p_.O) return;
    const char* next = reinterpret_cast<const char*>(p_.panels + panel * p_.K * kColumnBlock);
    for (int64_t at = 0; at < 2 * p_.K * kColumnBlock; at += 64) __builtin_prefetch(next + at, 0, 2);
  }

  void block(int64_t n, int64_t rows, int64_t panel) {
    const int64_t first = panel * kColumnBlock;
    const uint16_t* weight = p_.panels + panel * p_.K * kColumnBlock;
    if (!p_.panels) {
      if (packed_ != panel) pack_panel(p_.weight, p_.weight_stride, p_.O, p_.K, first, panel_);
      packed_ = panel, weight = panel_;
    }
    const bool whole = rows == kRowBlock;
    const uint16_t* x = whole ? p_.x + n * p_.x_stride : padded(p_.x + n * p_.x_stride, rows);
    blas::brgemm(kRowBlock, kColumnBlock, p_.K, whole ? p_.x_stride : p_.K, kColumnBlock, kColumnBlock, false,
                 reinterpret_cast<const at::BFloat16*>(x), reinterpret_cast<const at::BFloat16*>(weight), sums_, true);
    if (p_.wide) finish(static_cast<float*>(p_.out), n, rows, first);
    else finish(static_cast<uint16_t*>(p_.out), n, rows, first);
  }

  // Rows past `rows` hold what was there before: their sums are not looked at.
  const uint16_t* padded(const uint16_t* x, int64_t rows) {
    if (kept_ != x)
      for (int64_t r = 0; r < rows; ++r) std::memcpy(rows_ + r * p_.K, x + r * p_.x_stride, p_.K * sizeof(*x));
    kept_ = x;
    return rows_;
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
  Scratch scratch_;
  float* sums_;
  uint16_t *panel_, *rows_;
  int64_t packed_ = -1;
  const uint16_t* kept_ = nullptr;
};

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

} // namespace

void pack_panels(const uint16_t* weight, int64_t stride, int64_t O, int64_t K, uint16_t* panels) {
  share(blocks(O, kColumnBlock), (double)O * K, 1e5, [&] {
    return [&](int64_t i) { pack_panel(weight, stride, O, K, i * kColumnBlock, panels + i * K * kColumnBlock); };
  });
}

void multiply(const Product& given) {
  Product p = given;
  std::unique_ptr<Scratch> copy;
  const int64_t panels = blocks(p.O, kColumnBlock);
  if (!p.panels && p.N > kFused) {
    copy = std::make_unique<Scratch>(panels * kColumnBlock * p.K / 2);
    uint16_t* to = reinterpret_cast<uint16_t*>(copy->take(0));
    pack_panels(p.weight, p.weight_stride, p.O, p.K, to);
    p.panels = to;
  }
  const int64_t near = kNear / (2 * p.K), chunk = std::max<int64_t>(1, near / kRowBlock) * kRowBlock;
  const int64_t chunks = blocks(p.N, chunk), group = std::max<int64_t>(1, near / kColumnBlock);
  // Rows of x stay while panels pass; unpacked, a panel stays while the (few) rows pass.
  const int64_t several = p.panels && chunks * panels >= 4 * group * at::get_num_threads() ? group : 1;
  const int64_t groups = blocks(panels, several);
  share(chunks * groups, (double)p.N * p.O * p.K, kGrain, [&] {
    return [&, worker = std::make_unique<Worker>(p, chunk)](int64_t item) {
      const int64_t rows = p.panels ? item / groups : item % chunks, first = p.panels ? item % groups : item / chunks;
      worker->run(rows, first * several, std::min(panels, (first + 1) * several));
    };
  });
}

} // namespace lockstep
