// Memory of one thread for the time of one call.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace lockstep {

// Floats of one thread, on a cache line, zero at first.
class Scratch {
 public:
  explicit Scratch(size_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes > 0 ? bytes : 64)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
    next_ = data_.get();
  }
  float* take(size_t count) { // a multiple of 16 keeps the next on a cache line
    float* out = next_;
    next_ += count;
    return out;
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  float* next_;
};

} // namespace lockstep
