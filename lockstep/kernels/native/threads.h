// Work shared among torch's own threads. A second pool on the same cores would make both wait for each other.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace lockstep {

// Calls work(item) once for each of `items`, in any order, on at most one thread per `grain` of `cost`. Items are
// handed out one at a time, so an uneven list still keeps all threads busy: order it by falling cost. The result must
// not depend on who does what. `make()` builds what one thread needs for all its items.
template <typename Make>
void share(int64_t items, double cost, double grain, const Make& make) {
  const int64_t most = std::max<int64_t>(1, (int64_t)std::min<double>(cost / grain, (double)items));
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), most);
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t, int64_t) {
    auto work = make();
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item);
  };
  if (threads == 1) return run(0, 1);
  at::parallel_for(0, threads, 1, run);
}

} // namespace lockstep
