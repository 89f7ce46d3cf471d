// What must hold for rows that go into files or come out of them.
#ifndef EMBSTORE_CPU_CHECKS_H_
#define EMBSTORE_CPU_CHECKS_H_

#include "../core/hash.h"
#include "../core/types.h"

namespace embstore::cpu {

// Whether any of n numbers has the exponent of infinities and NaN.
template <class Bits>
inline bool has_exponent(const Bits* numbers, uint64_t n, Bits exponent) {
  Bits any = 0;
  for (uint64_t i = 0; i < n; ++i) any |= static_cast<Bits>((numbers[i] & exponent) == exponent);
  return any != 0;
}

inline bool is_row_finite(const void* values, Dtype dtype, uint64_t n) {
  if (dtype == Dtype::kF32) return !has_exponent<uint32_t>(static_cast<const uint32_t*>(values), n, 0x7F800000u);
  return !has_exponent<uint16_t>(static_cast<const uint16_t*>(values), n, dtype == Dtype::kF16 ? 0x7C00u : 0x7F80u);
}

// How many of n rows have NaN or infinity among values (n, dim) or slots (n, n_slots).
inline uint64_t n_nonfinite_rows(const void* values, Dtype dtype, uint64_t dim, const float* slots, uint64_t n_slots,
                                 uint64_t n) {
  if (is_row_finite(values, dtype, n * dim) && is_row_finite(slots, Dtype::kF32, n * n_slots)) return 0;
  uint64_t count = 0;
  for (uint64_t i = 0; i < n; ++i)
    count += !is_row_finite(static_cast<const char*>(values) + i * dim * size_of(dtype), dtype, dim) ||
             !is_row_finite(slots + i * n_slots, Dtype::kF32, n_slots);
  return count;
}

// By (partition, key): the first of n keys, each of a partition in [first, last], that does not come after the one
// before it (`previous`, if not null, before the first); n if all do.
inline uint64_t first_out_of_order(const int64_t* keys, uint64_t n, uint32_t first, uint32_t last,
                                   const int64_t* previous) {
  if (n == 0) return 0;
  uint32_t before = previous != nullptr ? partition_of(static_cast<uint64_t>(*previous)) : first;
  int64_t key_before = previous != nullptr ? *previous : INT64_MIN;
  bool is_first = previous == nullptr;
  for (uint64_t i = 0; i < n; ++i) {
    const uint32_t partition = partition_of(static_cast<uint64_t>(keys[i]));
    const bool is_after = is_first || partition > before || (partition == before && keys[i] > key_before);
    if (!is_after || partition < first || partition > last) return i;
    before = partition;
    key_before = keys[i];
    is_first = false;
  }
  return n;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_CHECKS_H_
