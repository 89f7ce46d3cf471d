// Bags of gathered rows: the pooled value of each, and the gradient of each row from its bag's.
#ifndef EMBSTORE_CPU_POOLING_H_
#define EMBSTORE_CPU_POOLING_H_

#include <vector>

#include "kernels.h"
#include "update.h"

namespace embstore::cpu {

// rows: (offsets[n_bags], dim) of any dtype; out: (n_bags, dim) float32.
inline void pool_bags(const Kernels& kernels, const void* rows, Dtype dtype, uint32_t dim, const int64_t* offsets,
                      uint64_t n_bags, PoolMode mode, const float* weights, float* out) {
  const RowFormat format = {dim, dtype, false, 0};
  const uint32_t n_parts = n_parts_for(n_bags);
  ThreadPool::instance().run(n_parts, [&](uint32_t part) {
    std::vector<float> scratch(uint64_t{kReduceLevels + 1} * dim);
    std::vector<float> wide;
    for (uint64_t bag = n_bags * part / n_parts; bag < n_bags * (part + 1) / n_parts; ++bag) {
      const uint64_t first = static_cast<uint64_t>(offsets[bag]);
      const uint64_t n = static_cast<uint64_t>(offsets[bag + 1]) - first;
      const float* bag_rows = static_cast<const float*>(rows) + first * dim;
      if (dtype != Dtype::kF32) {
        wide.resize(n * dim);
        const char* narrow_rows = static_cast<const char*>(rows) + first * value_bytes(format);
        for (uint64_t i = 0; i < n; ++i) widen_row(narrow_rows + i * value_bytes(format), format, &wide[i * dim]);
        bag_rows = wide.data();
      }
      kernels.pool(bag_rows, dim, weights != nullptr ? weights + first : nullptr, n, mode, scratch.data(),
                   out + bag * dim);
    }
  });
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
