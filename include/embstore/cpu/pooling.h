// Bags of rows: the pooled value of each, without the rows of all keys in memory at once; and es_pool's plain arrays.
#ifndef EMBSTORE_CPU_POOLING_H_
#define EMBSTORE_CPU_POOLING_H_

#include <vector>

#include "kernels.h"
#include "parts.h"
#include "update.h"

namespace embstore::cpu {

// Pools rows where they lie. Belongs to one writer, which nobody may write beside.
class Pooling {
 public:
  // row_of(i) is where the row of the part's key i lies, in the table's dtype.
  template <class RowOf>
  void run(const Kernels& kernels, const RowFormat& format, const es_part& part, const RowOf& row_of) {
    const uint64_t n_floats = uint64_t{kReduceLevels + 2} * format.dim;
    rows_.resize(part.n);
    for (uint64_t i = 0; i < part.n; ++i) rows_[i] = row_of(i);
    const uint32_t n_parts = n_parts_for(part.n);
    scratch_.resize(n_parts * n_floats);
    const uint64_t n_bags = part.n_bags;
    ThreadPool::instance().run(n_parts, [&](uint32_t p) {
      for (uint64_t bag = n_bags * p / n_parts; bag < n_bags * (p + 1) / n_parts; ++bag)
        kernels.pool(pool_rows_of(part, bag), format, scratch_.data() + p * n_floats,
                     static_cast<float*>(part.rows) + bag * format.dim);
    });
  }

  uint64_t bytes() const { return rows_.bytes() + scratch_.bytes(); }

 private:
  PoolRows pool_rows_of(const es_part& part, uint64_t bag) const {
    const uint64_t first = static_cast<uint64_t>(part.offsets[bag]);
    return PoolRows{rows_.data() + first, static_cast<uint64_t>(part.offsets[bag + 1]) - first, part.n - first,
                    part.weights != nullptr ? part.weights + first : nullptr, static_cast<PoolMode>(part.mode)};
  }

  Scratch<const void*> rows_;
  Scratch<float> scratch_;
};

// rows: (offsets[n_bags], dim) of any dtype; out: (n_bags, dim) float32.
inline void pool_bags(const Kernels& kernels, const void* rows, Dtype dtype, uint32_t dim, const int64_t* offsets,
                      uint64_t n_bags, PoolMode mode, const float* weights, float* out) {
  const RowFormat format = {dim, dtype, false, 0};
  const char* const first_row = static_cast<const char*>(rows);
  const es_part part = {nullptr, static_cast<uint64_t>(offsets[n_bags]),
                        nullptr, out,
                        ES_F32,  static_cast<int32_t>(mode),
                        offsets, n_bags,
                        weights};
  Pooling pooling;
  pooling.run(kernels, format, part, [&](uint64_t i) { return first_row + i * value_bytes(format); });
}

// grads: (offsets[n_bags], dim) float32.
inline void pool_bags_backward(const float* bag_grads, uint32_t dim, const int64_t* offsets, uint64_t n_bags,
                               PoolMode mode, const float* weights, float* grads) {
  for (uint64_t bag = 0; bag < n_bags; ++bag) {
    const uint64_t first = static_cast<uint64_t>(offsets[bag]);
    const uint64_t end = static_cast<uint64_t>(offsets[bag + 1]);
    const float divisor = pool_divisor(mode, end - first);
    for (uint64_t i = first; i < end; ++i)
      for (uint32_t j = 0; j < dim; ++j) {
        const float g = bag_grads[bag * dim + j] / divisor;
        grads[i * dim + j] = weights != nullptr ? g * weights[i] : g;
      }
  }
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_POOLING_H_
