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

struct HashSeed {
  uint64_t a;
  uint64_t b;
};

// Folds the 128-bit product onto itself (the round of wyhash and mum-hash).
EMB_FN uint64_t multiply_fold(uint64_t a, uint64_t b) { return (a * b) ^ mulhi(a, b); }

// An odd multiplier that is neither 1 nor -1, by which a fold would mix nothing.
EMB_FN uint64_t multiplier_of(uint64_t x) {
  const uint64_t odd = x | 1;
  return odd + 1 < 3 ? 0x9E3779B97F4A7C15ull : odd;
}

// Words as the user gave them, however plain, to words that look random. Once a table.
EMB_FN HashSeed stirred(HashSeed seed) {
  const uint64_t a = fixed_hash(seed.a);
  return HashSeed{a, fixed_hash(seed.b ^ a)};
}

// Expects a stirred seed.
EMB_FN uint64_t keyed_hash(uint64_t key, HashSeed seed) {
  const uint64_t once = multiply_fold(key ^ seed.a, multiplier_of(seed.b));
  return multiply_fold(once ^ seed.b, multiplier_of(seed.a ^ 0x9E3779B97F4A7C15ull));
}

// The bucket of n that a hash falls into: its high part, so that the order of hashes is the order of buckets.
EMB_FN uint64_t bucket_of(uint64_t hash, uint64_t n_buckets) { return mulhi(hash, n_buckets); }

}  // namespace embstore

#endif  // EMBSTORE_CORE_HASH_H_
