// A batch's distinct keys, in order of first occurrence, and where each occurrence went.
#ifndef EMBSTORE_CPU_DEDUP_H_
#define EMBSTORE_CPU_DEDUP_H_

#include <cstring>
#include <vector>

#include "../core/types.h"
#include "index.h"

namespace embstore::cpu {

struct Distinct {
  std::vector<uint64_t> keys;         // (n_unique,)
  std::vector<uint64_t> hashes;       // (n_unique,) the index's hash
  std::vector<uint32_t> occurrences;  // (n_unique,) sum of counts, saturating
  std::vector<uint32_t> n_positions;  // (n_unique,) how many positions of the batch hold the key
  std::vector<uint32_t> first;        // (n_unique,) the first of them
  std::vector<uint32_t> inverse;      // (n,) into the distinct keys

  uint64_t n_unique() const { return keys.size(); }

  void clear() {
    keys.clear();
    hashes.clear();
    occurrences.clear();
    n_positions.clear();
    first.clear();
    inverse.clear();
  }
};

// Distinct keys by a hash table of its own, which is kept from batch to batch. Belongs to one writer.
class Dedup {
 public:
  // counts (n,) may be null: one each.
  void run(const Index& index, const int64_t* keys, uint64_t n, const uint32_t* counts, Distinct* out) {
    out->clear();
    prepare(n, out);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t key = static_cast<uint64_t>(keys[i]);
      const uint64_t hash = index.hash(key);
      const uint32_t count = counts != nullptr ? counts[i] : 1;
      const uint32_t unique = place(key, hash, static_cast<uint32_t>(i), out);
      out->occurrences[unique] = saturating_add(out->occurrences[unique], count);
      ++out->n_positions[unique];
      out->inverse[i] = unique;
    }
  }

  uint64_t bytes() const { return slots_.capacity() * sizeof(uint32_t); }

 private:
  void prepare(uint64_t n, Distinct* out) {
    uint64_t size = 64;
    while (size < 2 * n) size *= 2;
    slots_.assign(size, 0);
    mask_ = size - 1;
    out->inverse.resize(n);
    out->keys.reserve(n);
    out->hashes.reserve(n);
    out->occurrences.reserve(n);
    out->n_positions.reserve(n);
    out->first.reserve(n);
  }

  // The number of this key among the distinct ones; slots hold that number plus one.
  uint32_t place(uint64_t key, uint64_t hash, uint32_t position, Distinct* out) {
    for (uint64_t s = hash & mask_;; s = (s + 1) & mask_) {
      const uint32_t held = slots_[s];
      if (held != 0 && out->keys[held - 1] == key) return held - 1;
      if (held != 0) continue;
      out->keys.push_back(key);
      out->hashes.push_back(hash);
      out->occurrences.push_back(0);
      out->n_positions.push_back(0);
      out->first.push_back(position);
      slots_[s] = static_cast<uint32_t>(out->keys.size());
      return static_cast<uint32_t>(out->keys.size() - 1);
    }
  }

  std::vector<uint32_t> slots_;
  uint64_t mask_ = 0;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_DEDUP_H_
