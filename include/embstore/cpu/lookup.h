// The loops over keys: where their rows lie, which of a batch are distinct. Compiled once for each instruction set
// (src/paths); as in kernels.h, all has internal linkage and includes core alone.
#ifndef EMBSTORE_CPU_LOOKUP_H_
#define EMBSTORE_CPU_LOOKUP_H_

#include "../core/types.h"
#include "probe.h"
#include "slab.h"

namespace embstore::cpu {

// What a lookup reads.
struct FindContext {
  View view;
  HashKeys hash_keys;
  Slab values;
  const uint32_t* versions;  // of rows: (kVersions,)
  const void* default_row;   // in the table's dtype
};

// What a reader beside a writer must check afterwards.
struct ReadVersions {
  SharedHit hit;
  uint32_t row;  // of the row's version word
};

// The distinct keys of a batch, or of a part of it, and where their cells are; the arrays of distinct keys have room
// for n.
struct DedupContext {
  View view;
  HashKeys hash_keys;
  const int64_t* keys;    // by position
  const uint32_t* order;  // (n,) the part's positions, ascending; null: all of [0, n)
  uint64_t n;
  uint32_t first_number;   // of the distinct keys, in out_inverse
  const uint32_t* counts;  // by position; null: one each
  uint32_t* slots;         // zeroed, a power of two of them, more than twice n
  uint64_t n_slots;
  uint64_t* out_keys;
  uint64_t* out_hashes;
  uint32_t* out_first;
  uint32_t* out_n_positions;
  uint32_t* out_occurrences;  // null if counts is
  uint32_t* out_inverse;      // by position
  Cell* out_cells;
};

EMB_FN uint64_t find_rows(const FindContext& c, const int64_t* keys, uint64_t n, const void** rows, uint32_t* words) {
  uint64_t n_found = 0;
  LateProbes late = {};
  const auto key_of = [&](uint64_t i) { return static_cast<uint64_t>(keys[i]); };
  const auto put = [&](uint64_t i, const Cell& cell) {
    const bool is_row = is_row_word(cell.word);
    words[i] = cell.word;
    const char* const row = slab_row(c.values, is_row ? row_of_word(cell.word) : 0);
    rows[i] = is_row ? row : c.default_row;
    n_found += is_row;
  };
  for_each_home(c.view, c.hash_keys, keys, n, [&](uint64_t i, Bucket* home) {
    put(i, look_once(&late, home, key_of(i), static_cast<uint32_t>(i)));
    if (is_full(late)) finish_late(&late, key_of, put);
  });
  finish_late(&late, key_of, put);
  return n_found;
}

EMB_FN uint64_t find_rows_versioned(const FindContext& c, const int64_t* keys, uint64_t n, const void** rows,
                                    uint32_t* words, ReadVersions* versions) {
  uint64_t n_found = 0;
  for_each_home(c.view, c.hash_keys, keys, n, [&](uint64_t i, const Bucket* home) {
    const SharedHit hit = probe_shared<false>(home, static_cast<uint64_t>(keys[i]));
    const bool is_row = is_row_word(hit.word);
    words[i] = hit.word;
    rows[i] = is_row ? slab_row(c.values, row_of_word(hit.word)) : c.default_row;
    versions[i] = {hit, is_row ? begin_read(c.versions + version_of(row_of_word(hit.word))) : 0};
    n_found += is_row;
  });
  return n_found;
}

// The number of this key among the distinct ones found so far, or of a new one. A slot holds that number plus one in
// its low bits, and bits of the hash above: another key is hardly ever looked at.
EMB_FN uint32_t place_key(const DedupContext& c, uint64_t key, uint64_t hash, uint32_t position, uint32_t n_unique) {
  const uint64_t mask = c.n_slots - 1;
  const uint32_t tag = static_cast<uint32_t>(hash >> 32) & ~static_cast<uint32_t>(mask);
  for (uint64_t s = hash & mask;; s = (s + 1) & mask) {
    const uint32_t held = c.slots[s];
    if (held == 0) {
      c.slots[s] = tag | (n_unique + 1);
      c.out_keys[n_unique] = key;
      c.out_hashes[n_unique] = hash;
      c.out_first[n_unique] = position;
      c.out_n_positions[n_unique] = 0;
      if (c.out_occurrences != nullptr) c.out_occurrences[n_unique] = 0;
      __builtin_prefetch(home_of(c.view, hash));
      return n_unique;
    }
    const uint32_t unique = (held & static_cast<uint32_t>(mask)) - 1;
    if ((held & ~static_cast<uint32_t>(mask)) == tag && c.out_keys[unique] == key) return unique;
  }
}

// Blocks of positions: a block's new keys are probed when the next block has been through, their homes having arrived.
EMB_FN uint64_t dedup(const DedupContext& c) {
  constexpr uint64_t kBlock = 64;
  uint64_t hashes[2 * kBlock];
  uint32_t n_unique = 0;
  uint32_t n_probed = 0;
  const auto position_of = [&](uint64_t i) { return c.order != nullptr ? c.order[i] : static_cast<uint32_t>(i); };
  const auto hash_block = [&](uint64_t first) {
    for (uint64_t i = first; i < c.n && i < first + kBlock; ++i) {
      hashes[i % (2 * kBlock)] = keyed_hash(static_cast<uint64_t>(c.keys[position_of(i)]), c.hash_keys);
      __builtin_prefetch(c.slots + (hashes[i % (2 * kBlock)] & (c.n_slots - 1)), 1);
    }
  };
  LateProbes late = {};
  const auto key_of = [&](uint32_t u) { return c.out_keys[u]; };
  const auto put = [&](uint32_t u, const Cell& cell) { c.out_cells[u] = cell; };
  const auto probe_until = [&](uint32_t end) {
    for (; n_probed < end; ++n_probed) {
      put(n_probed, look_once(&late, home_of(c.view, c.out_hashes[n_probed]), c.out_keys[n_probed], n_probed));
      if (is_full(late)) finish_late(&late, key_of, put);
    }
  };
  hash_block(0);
  for (uint64_t first = 0; first < c.n; first += kBlock) {
    const uint32_t n_before = n_unique;
    hash_block(first + kBlock);
    for (uint64_t i = first; i < c.n && i < first + kBlock; ++i) {
      const uint32_t position = position_of(i);
      const uint64_t key = static_cast<uint64_t>(c.keys[position]);
      const uint32_t unique = place_key(c, key, hashes[i % (2 * kBlock)], position, n_unique);
      n_unique += unique == n_unique;
      ++c.out_n_positions[unique];
      if (c.counts != nullptr)
        c.out_occurrences[unique] = saturating_add(c.out_occurrences[unique], c.counts[position]);
      c.out_inverse[position] = c.first_number + unique;
    }
    probe_until(n_before);
  }
  probe_until(n_unique);
  finish_late(&late, key_of, put);
  return n_unique;
}

// The part is of the middle bits of the hash: the high ones are the bucket's, the low ones those of dedup's slots.
EMB_FN void split_keys(const HashKeys& hash_keys, const int64_t* keys, uint64_t n, uint32_t n_parts, uint32_t* counts,
                       uint8_t* parts) {
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t hash = keyed_hash(static_cast<uint64_t>(keys[i]), hash_keys);
    parts[i] = static_cast<uint8_t>((hash >> 24 & 0xFFFF) * n_parts >> 16);
    ++counts[parts[i]];
  }
}

EMB_FN void find_cells(const View& view, const uint64_t* keys, const uint64_t* hashes, uint64_t n, Cell* out) {
  for (uint64_t u = 0; u < n; ++u) {
    if (u + kProbesAhead < n) __builtin_prefetch(home_of(view, hashes[u + kProbesAhead]));
    out[u] = find_cell(home_of(view, hashes[u]), keys[u]);
  }
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_LOOKUP_H_
