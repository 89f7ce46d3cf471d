// The distinct keys of a batch in order of first occurrence, by a hash table of positions that lives for one call.
//
// 1. A slot of the table holds the first position of its key that has come by: whoever claims it, the least one stays.
// 2. Slots hold positions, not keys, so that all keys are legal; kNoPosition, with which the table is filled, is none.
// 3. Numbers of distinct keys are ranks of first positions, so no race decides them.
#ifndef EMBSTORE_CUDA_DEDUP_H_
#define EMBSTORE_CUDA_DEDUP_H_

#include "../core/hash.h"
#include "../core/types.h"
#include "simt.h"

namespace embstore::cuda {

EMB_CONST uint32_t kNoPosition = 0xFFFFFFFFu;

// The slot that comes to hold the first position of the key at position i; there are `mask` + 1, a power of two.
EMB_DEVICE uint32_t claim_slot(const uint64_t* keys, uint32_t i, const HashKeys& hash_keys, uint32_t* slots,
                               uint64_t mask) {
  const uint64_t key = keys[i];
  for (uint64_t slot = keyed_hash(key, hash_keys) & mask;; slot = (slot + 1) & mask) {
    uint32_t holder = load_relaxed(&slots[slot]);
    if (holder == kNoPosition) holder = compare_swap(&slots[slot], kNoPosition, i);
    if (holder == kNoPosition) return static_cast<uint32_t>(slot);
    if (keys[holder] != key) continue;
    if (i < holder) fetch_min(&slots[slot], i);
    return static_cast<uint32_t>(slot);
  }
}

// Occurrences are added up in 64 bits, which hold any batch's, and are saturated where they are read.
EMB_DEVICE uint32_t saturated(uint64_t occurrences) {
  return occurrences > 0xFFFFFFFFull ? 0xFFFFFFFFu : static_cast<uint32_t>(occurrences);
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_DEDUP_H_
