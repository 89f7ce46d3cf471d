// The two hashes: a fixed one that files and filters depend on, and a keyed one for the index alone.
//
// 1. fixed_hash is a bijection and never changes: partitions, shards and bloom positions are stored by it.
// 2. keyed_hash depends on 128 secret bits; no result that a user can see depends on it.
#ifndef EMBSTORE_CORE_HASH_H_
#define EMBSTORE_CORE_HASH_H_

#include "portable.h"

namespace embstore {

EMB_CONST uint32_t kPartitions = 256;

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
EMB_FN uint64_t fixed_hash(uint64_t key) {
  uint64_t z = key + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

EMB_FN uint32_t partition_of(uint64_t key) { return static_cast<uint32_t>(fixed_hash(key) >> 56); }

EMB_FN uint64_t name_hash(const char* utf8, uint64_t n_bytes) {  // FNV-1a, finalized
  uint64_t h = 0xCBF29CE484222325ull;
  for (uint64_t i = 0; i < n_bytes; ++i) h = (h ^ static_cast<uint8_t>(utf8[i])) * 0x100000001B3ull;
  return fixed_hash(h);
}

struct HashSeed {  // 128 secret bits, as given
  uint64_t a;
  uint64_t b;
};

struct HashKeys {  // what keyed_hash works with
  uint64_t first;
  uint64_t second;
  uint64_t first_multiplier;
  uint64_t second_multiplier;
};

// Folds the 128-bit product onto itself (the round of wyhash and mum-hash).
EMB_FN uint64_t multiply_fold(uint64_t a, uint64_t b) { return (a * b) ^ mulhi(a, b); }

// An odd multiplier that is neither 1 nor -1, by which a fold would mix nothing.
EMB_FN uint64_t multiplier_of(uint64_t x) {
  const uint64_t odd = x | 1;
  return odd + 1 < 3 ? 0x9E3779B97F4A7C15ull : odd;
}

// However plain the seed, the keys look random.
EMB_FN HashKeys hash_keys(HashSeed seed) {
  const uint64_t first = fixed_hash(seed.a);
  const uint64_t second = fixed_hash(seed.b ^ first);
  return HashKeys{first, second, multiplier_of(second), multiplier_of(fixed_hash(first ^ second))};
}

EMB_FN uint64_t keyed_hash(uint64_t key, const HashKeys& keys) {
  const uint64_t once = multiply_fold(key ^ keys.first, keys.first_multiplier);
  return multiply_fold(once ^ keys.second, keys.second_multiplier);
}

// The bucket of n that a hash falls into: its high part, so that the order of hashes is the order of buckets.
EMB_FN uint64_t bucket_of(uint64_t hash, uint64_t n_buckets) { return mulhi(hash, n_buckets); }

}  // namespace embstore

#endif  // EMBSTORE_CORE_HASH_H_
