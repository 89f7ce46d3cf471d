// Distinct keys of a batch: claim, flag, (scan), write.
#include "embstore/cuda/dedup.h"

#include "embstore/cuda/order.h"

using namespace embstore;
using namespace embstore::cuda;

struct DedupClaimArgs {
  const uint64_t* keys;  // (n,)
  uint64_t n;
  uint64_t hash_first;
  uint64_t hash_second;
  uint64_t hash_first_multiplier;
  uint64_t hash_second_multiplier;
  uint32_t* slots;  // (mask + 1,) filled with kNoPosition
  uint64_t mask;
  uint32_t* slot_of;  // (n,)
};

EMB_KERNEL(dedup_claim, DedupClaimArgs) {
  const HashKeys hash_keys = {a.hash_first, a.hash_second, a.hash_first_multiplier, a.hash_second_multiplier};
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads())
    a.slot_of[i] = claim_slot(a.keys, static_cast<uint32_t>(i), hash_keys, a.slots, a.mask);
}

struct DedupFlagArgs {
  uint64_t n;
  const uint32_t* slots;
  const uint32_t* slot_of;
  uint32_t* is_first;  // (n,)
};

EMB_KERNEL(dedup_flag, DedupFlagArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.is_first[i] = a.slots[a.slot_of[i]] == i;
}

struct DedupWriteArgs {
  const uint64_t* keys;
  uint64_t n;
  const uint32_t* counts;  // (n,) or null: ones
  const uint32_t* slots;
  const uint32_t* slot_of;
  const uint32_t* numbers;  // (n,) first positions before each position
  uint64_t* unique_keys;    // (n_unique,)
  uint32_t* inverse;        // (n,)
  uint64_t* occurrences;    // (n_unique,) zeroed; or null
};

EMB_KERNEL(dedup_write, DedupWriteArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    const uint32_t first = a.slots[a.slot_of[i]];
    const uint32_t unique = a.numbers[first];
    a.inverse[i] = unique;
    if (first == i) a.unique_keys[unique] = a.keys[i];
    if (a.occurrences != nullptr)
      fetch_add(&a.occurrences[unique], a.counts != nullptr ? uint64_t{a.counts[i]} : uint64_t{1});
  }
}
