// Bags of rows: what a pooled value and its gradient are divided by.
#ifndef EMBSTORE_CORE_POOLING_H_
#define EMBSTORE_CORE_POOLING_H_

#include "portable.h"

namespace embstore {

enum class PoolMode : int32_t { kSum = 0, kMean = 1, kSqrtN = 2 };

EMB_FN float pool_divisor(PoolMode mode, uint64_t n) {
  const float count = static_cast<float>(static_cast<int64_t>(n));
  return mode == PoolMode::kSum ? 1.0f : mode == PoolMode::kMean ? count : square_root(count);
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_POOLING_H_
