// Splitting work among the threads of the pool.
#ifndef EMBSTORE_CPU_RANGES_H_
#define EMBSTORE_CPU_RANGES_H_

#include <algorithm>

#include "thread_pool.h"

namespace embstore::cpu {

constexpr uint64_t kRowsPerThread = 1024;  // below that a second thread costs more than it brings

inline uint32_t n_parts_for(uint64_t n_rows) {
  const uint64_t most = static_cast<uint64_t>(ThreadPool::instance().n_threads());
  return static_cast<uint32_t>(std::max<uint64_t>(1, std::min(most, n_rows / kRowsPerThread)));
}

// run(part, first, end) for n_parts ranges of [0, n), each by one thread. Who has room for each part made it for as
// many: the number of threads may change at any time.
template <class Run>
void for_ranges(uint64_t n, uint32_t n_parts, const Run& run) {
  ThreadPool::instance().run(n_parts, [&](uint32_t part) { run(part, n * part / n_parts, n * (part + 1) / n_parts); });
}

template <class Run>
void for_ranges(uint64_t n, const Run& run) {
  for_ranges(n, n_parts_for(n), run);
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_RANGES_H_
