// Where the rows of an arena lie, by value: for the loops that src/paths compiles.
#ifndef EMBSTORE_CPU_SLAB_H_
#define EMBSTORE_CPU_SLAB_H_

#include "shared.h"

namespace embstore::cpu {

struct Slab {
  char* const* chunks;
  uint32_t shift;  // log2 of the rows of a chunk
  uint32_t stride;
};

EMB_FN char* slab_row(const Slab& slab, uint32_t id) {
  return load_shared(slab.chunks + (id >> slab.shift)) + uint64_t{id & ((1u << slab.shift) - 1u)} * slab.stride;
}

// The seqlock words of rows' values: odd while a writer changes the values of a row whose id ends in the word's number.
EMB_CONST uint32_t kVersions = 1u << 14;

EMB_FN uint32_t version_of(uint32_t row) { return row % kVersions; }

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_SLAB_H_
