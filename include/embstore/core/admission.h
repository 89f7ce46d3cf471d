// When a key gets a row: exact counting in the key's own cell, or a blocked counting bloom filter.
//
// 1. A key is admitted iff count_before + occurrences >= min_count, on every path.
// 2. The filter is 256 sub-filters, one a partition, of 64-byte blocks; it depends on the fixed hash alone.
// 3. A batch reads all estimates first, decides, then adds: additions saturate and so commute.
#ifndef EMBSTORE_CORE_ADMISSION_H_
#define EMBSTORE_CORE_ADMISSION_H_

#include "hash.h"
#include "portable.h"
#include "types.h"

namespace embstore {

enum class AdmissionKind : int32_t { kAll = 0, kCounter = 1, kBloom = 2 };

EMB_CONST uint32_t kBloomBlockBytes = 64;
EMB_CONST uint32_t kMaxBloomHashes = 16;

EMB_FN bool is_admitted(uint32_t count_before, uint32_t occurrences, uint32_t min_count) {
  return saturating_add(count_before, occurrences) >= min_count;
}

struct BloomShape {
  uint32_t cell_bits;  // 1, 2 or 4
  uint32_t n_hashes;
  uint64_t blocks_per_partition;
};

// Where a key lies in the filter: its block, and the distinct cells within it.
struct BloomPlace {
  uint64_t block;  // counted over all partitions
  uint32_t n_cells;
  uint16_t cell[kMaxBloomHashes];
};

EMB_FN uint32_t log2_of_cells(uint32_t cell_bits) { return cell_bits == 1 ? 9 : cell_bits == 2 ? 8 : 7; }

EMB_FN BloomPlace bloom_place(uint64_t key, const BloomShape& shape) {
  const uint64_t z = fixed_hash(key);
  BloomPlace place;
  place.block = (z >> 56) * shape.blocks_per_partition + mulhi(z << 8, shape.blocks_per_partition);
  place.n_cells = 0;
  const uint32_t b = log2_of_cells(shape.cell_bits);
  uint64_t g = fixed_hash(z);
  uint32_t bits_left = 64;
  uint64_t n_refills = 0;
  for (uint32_t j = 0; j < shape.n_hashes; ++j) {
    if (bits_left < b) {
      ++n_refills;
      g = fixed_hash(z + n_refills);
      bits_left = 64;
    }
    const uint16_t cell = static_cast<uint16_t>(g & ((1u << b) - 1u));
    g >>= b;
    bits_left -= b;
    bool is_new = true;
    for (uint32_t i = 0; i < place.n_cells; ++i) is_new = is_new && place.cell[i] != cell;
    if (is_new) place.cell[place.n_cells++] = cell;
  }
  return place;
}

EMB_FN uint32_t bloom_get(const uint8_t* block, uint32_t cell, uint32_t cell_bits) {
  const uint32_t bit = cell * cell_bits;
  return (block[bit >> 3] >> (bit & 7u)) & ((1u << cell_bits) - 1u);
}

EMB_FN uint32_t bloom_estimate(const uint8_t* block, const BloomPlace& place, uint32_t cell_bits) {
  uint32_t least = 0xFFFFFFFFu;
  for (uint32_t i = 0; i < place.n_cells; ++i) {
    const uint32_t count = bloom_get(block, place.cell[i], cell_bits);
    least = count < least ? count : least;
  }
  return least;
}

EMB_FN void bloom_add(uint8_t* block, const BloomPlace& place, uint32_t cell_bits, uint32_t occurrences) {
  const uint32_t most = (1u << cell_bits) - 1u;
  for (uint32_t i = 0; i < place.n_cells; ++i) {
    const uint32_t bit = place.cell[i] * cell_bits;
    const uint32_t count = saturating_add(bloom_get(block, place.cell[i], cell_bits), occurrences);
    const uint32_t kept = count < most ? count : most;
    block[bit >> 3] = static_cast<uint8_t>((block[bit >> 3] & ~(most << (bit & 7u))) | (kept << (bit & 7u)));
  }
}

// Eight bytes of cells, each shifted right by one.
EMB_FN uint64_t bloom_halved(uint64_t word, uint32_t cell_bits) {
  const uint64_t keep = cell_bits == 1 ? 0 : cell_bits == 2 ? 0x5555555555555555ull : 0x7777777777777777ull;
  return (word >> 1) & keep;
}

// A candidate may stay while it was counted within ttl steps, to a grain of a sixteenth.
EMB_FN int64_t candidate_grain(int64_t ttl) { return ttl / 16 > 1 ? ttl / 16 : 1; }
EMB_FN bool is_candidate_expired(int64_t epoch, int64_t now_epoch, int64_t ttl) {
  return (now_epoch - epoch) > ttl / candidate_grain(ttl);
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_ADMISSION_H_
