// A batch's distinct keys, in order of first occurrence, and where each occurrence went.
#ifndef EMBSTORE_CPU_DEDUP_H_
#define EMBSTORE_CPU_DEDUP_H_

#include <cstring>

#include "index.h"
#include "kernels.h"

namespace embstore::cpu {

// What the backward pass needs too. Arrays but `inverse` have n_unique elements; `inverse` has one for each position.
struct Distinct {
  Scratch<uint64_t> keys;
  Scratch<uint32_t> n_positions;  // how many positions of the batch hold the key
  Scratch<uint32_t> first;        // the first of them
  Scratch<uint32_t> inverse;      // into the distinct keys
  uint64_t n_unique = 0;

  uint64_t n() const { return inverse.size(); }
  uint64_t bytes() const { return keys.bytes() + n_positions.bytes() + first.bytes() + inverse.bytes(); }
};

// What the call at work needs of each distinct key; arrays of n_unique elements.
struct Lookup {
  Scratch<uint64_t> hashes;
  Scratch<Cell> cells;
  Scratch<uint32_t> counted;              // room for `occurrences`
  const uint32_t* occurrences = nullptr;  // sum of counts, saturating
  uint64_t layout = 0;                    // of the index when the cells were found

  uint64_t bytes() const { return hashes.bytes() + cells.bytes() + counted.bytes(); }
};

// Distinct keys by a hash table of its own, each looked up in the index on the way. Belongs to one writer.
class Dedup {
 public:
  // counts (n,) may be null: one each.
  void run(const Kernels& kernels, const Index& index, const int64_t* keys, uint64_t n, const uint32_t* counts,
           Distinct* out, Lookup* lookup) {
    uint64_t n_slots = 64;
    while (n_slots < 2 * n + 2) n_slots *= 2;
    slots_.resize(n_slots);
    std::memset(slots_.data(), 0, n_slots * sizeof(uint32_t));
    DedupContext c = {};
    c.view = index.view();
    c.hash_keys = index.hash_keys();
    c.keys = keys;
    c.n = n;
    c.counts = counts;
    c.slots = slots_.data();
    c.n_slots = n_slots;
    c.out_keys = out->keys.resize(n);
    c.out_hashes = lookup->hashes.resize(n);
    c.out_first = out->first.resize(n);
    c.out_n_positions = out->n_positions.resize(n);
    c.out_occurrences = counts != nullptr ? lookup->counted.resize(n) : nullptr;
    c.out_inverse = out->inverse.resize(n);
    c.out_cells = lookup->cells.resize(n);
    out->n_unique = kernels.dedup(c);
    lookup->occurrences = counts != nullptr ? lookup->counted.data() : out->n_positions.data();
    lookup->layout = index.layout();
  }

  uint64_t bytes() const { return slots_.bytes(); }

 private:
  Scratch<uint32_t> slots_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_DEDUP_H_
