// Bags of rows: the pooled value of each, without the rows of all keys in memory at once.
#ifndef EMBSTORE_CPU_POOLING_H_
#define EMBSTORE_CPU_POOLING_H_

#include <algorithm>

#include "kernels.h"
#include "memory.h"
#include "parts.h"
#include "ranges.h"

namespace embstore::cpu {

inline uint64_t pool_scratch_floats(uint32_t dim) { return round_up(uint64_t{kReduceLevels + 2} * dim, 16); }

// Pools the bags [first_bag, end_bag) of a part. rows[i] is where the row of the part's key i lies; pointers of keys
// beyond those bags are read up to n_readable. scratch: (pool_scratch_floats,)
inline void pool_bags(const Kernels& kernels, const RowFormat& format, const es_part& part, uint64_t first_bag,
                      uint64_t end_bag, const void* const* rows, uint64_t n_readable, float* scratch) {
  for (uint64_t bag = first_bag; bag < end_bag; ++bag) {
    const uint64_t first = static_cast<uint64_t>(part.offsets[bag]);
    const PoolRows pool_rows = {rows + first, static_cast<uint64_t>(part.offsets[bag + 1]) - first, n_readable - first,
                                part.weights != nullptr ? part.weights + first : nullptr,
                                static_cast<PoolMode>(part.mode)};
    kernels.pool(pool_rows, format, scratch, static_cast<float*>(part.rows) + bag * format.dim);
  }
}

// Where the bags of a thread begin, so that all have about as many keys.
inline uint64_t first_bag_of(const es_part& part, uint32_t thread, uint32_t n_threads) {
  if (thread == n_threads) return part.n_bags;
  const int64_t first_key = static_cast<int64_t>(part.n * thread / n_threads);
  return static_cast<uint64_t>(std::lower_bound(part.offsets, part.offsets + part.n_bags, first_key) - part.offsets);
}

// Pools rows where they lie. Belongs to one writer, which nobody may write beside.
class Pooling {
 public:
  // Room for parts of up to n keys.
  void reserve(uint64_t n, uint32_t dim) {
    n_threads_ = n_parts_for(n);
    rows_.resize(n);
    scratch_.resize(n_threads_ * pool_scratch_floats(dim));
  }

  // After reserve() it cannot fail. row_of(i) is where the row of the part's key i lies, in the format's dtype.
  template <class RowOf>
  void run(const Kernels& kernels, const RowFormat& format, const es_part& part, const RowOf& row_of) {
    const uint64_t n_floats = pool_scratch_floats(format.dim);
    const uint32_t n_threads = std::min(n_threads_, n_parts_for(part.n));
    for_ranges(part.n, [&](uint32_t, uint64_t first, uint64_t end) {
      for (uint64_t i = first; i < end; ++i) rows_[i] = row_of(i);
    });
    ThreadPool::instance().run(n_threads, [&](uint32_t thread) {
      pool_bags(kernels, format, part, first_bag_of(part, thread, n_threads), first_bag_of(part, thread + 1, n_threads),
                rows_.data(), part.n, scratch_.data() + thread * n_floats);
    });
  }

  uint64_t bytes() const { return rows_.bytes() + scratch_.bytes(); }

 private:
  uint32_t n_threads_ = 1;
  Scratch<const void*> rows_;
  Scratch<float> scratch_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_POOLING_H_
