// find_or_insert on distinct keys: decide, then commit; docs/semantics.md, sections 4 and 5.
//
// 1. Nothing of the table changes before commit_key; what may fail has been seen to by then.
// 2. Keys are distinct, so no two tiles meet in a row or a cell; in the filter they do, and add by compare_swap.
// 3. New rows get their ids by the ranks of their keys, so that refusals and ids follow the batch's order.
#ifndef EMBSTORE_CUDA_INSERT_H_
#define EMBSTORE_CUDA_INSERT_H_

#include "arena.h"
#include "dedup.h"
#include "index.h"

namespace embstore::cuda {

EMB_CONST uint8_t kFound = 0;  // es_key_status
EMB_CONST uint8_t kInserted = 1;
EMB_CONST uint8_t kPending = 2;
EMB_CONST uint8_t kRefused = 3;

enum class Admits : uint64_t { kByPolicy = 0, kAll = 1, kNone = 2 };  // what becomes of absent keys

// Of a batch, by the numbers of its distinct keys.
struct Decision {
  uint8_t status;
  uint32_t row;     // kNoRow without one
  uint32_t before;  // what was counted of an absent key before this batch
  uint64_t cell;    // of a row or a candidate; else kNoCell
};

EMB_DEVICE bool has_counter(const TableView& t) {
  return static_cast<AdmissionKind>(t.admission_kind) == AdmissionKind::kCounter;
}
EMB_DEVICE bool has_bloom(const TableView& t) {
  return static_cast<AdmissionKind>(t.admission_kind) == AdmissionKind::kBloom;
}

EMB_DEVICE uint32_t counted_before(const TableView& t, uint64_t key, uint32_t word) {
  if (is_candidate_word(word)) return candidate_count(word);
  if (!has_bloom(t)) return 0;
  const BloomPlace place = bloom_place(key, bloom_shape_of(t));
  return bloom_estimate(t.bloom + place.block * kBloomBlockBytes, place, static_cast<uint32_t>(t.bloom_cell_bits));
}

// All lanes of a tile call it and get the same.
EMB_DEVICE Decision decide(const IndexTile& tile, const TableView& t, uint64_t key, uint32_t occurrences,
                           Admits admits) {
  const CellOf found = find_cell(tile, t, key);
  if (is_row_word(found.word)) return Decision{kFound, row_of_word(found.word), 0, found.cell};
  uint32_t before = 0;
  if (tile.lane() == 0 && admits != Admits::kNone) before = counted_before(t, key, found.word);
  before = tile.shfl(before, 0);
  const bool admits_all = admits == Admits::kAll || static_cast<AdmissionKind>(t.admission_kind) == AdmissionKind::kAll;
  const bool is_in = admits_all || is_admitted(before, occurrences, static_cast<uint32_t>(t.min_count));
  return Decision{is_in && admits != Admits::kNone ? kInserted : kPending, kNoRow, before, found.cell};
}

// One cell of the filter, saturating; neighbours in its word may change at the same time.
EMB_DEVICE void add_to_bloom_cell(uint32_t* block, uint32_t cell, uint32_t cell_bits, uint32_t occurrences) {
  const uint32_t bit = cell * cell_bits;
  uint32_t* const word = block + bit / 32;
  const uint32_t shift = bit % 32, most = (1u << cell_bits) - 1u;
  for (uint32_t seen = load_relaxed(word);;) {
    const uint32_t sum = saturating_add(seen >> shift & most, occurrences);
    const uint32_t kept = sum < most ? sum : most;
    const uint32_t next = (seen & ~(most << shift)) | kept << shift;
    if (next == seen) return;
    const uint32_t old = compare_swap(word, seen, next);
    if (old == seen) return;
    seen = old;
  }
}

EMB_DEVICE void count_in_bloom(const IndexTile& tile, const TableView& t, uint64_t key, uint32_t occurrences) {
  const BloomPlace place = bloom_place(key, bloom_shape_of(t));
  uint32_t* const block = reinterpret_cast<uint32_t*>(t.bloom + place.block * kBloomBlockBytes);
  for (uint32_t i = 0; i < place.n_cells; ++i)
    if (i % 8 == tile.lane())
      add_to_bloom_cell(block, place.cell[i], static_cast<uint32_t>(t.bloom_cell_bits), occurrences);
}

// The id of new row number `rank`: free ids first, the last of the list before the others.
EMB_DEVICE uint32_t new_row_id(const TableView& t, uint32_t rank) {
  const uint64_t n_free = t.counters->n_free;
  if (rank < n_free) return t.free_rows[n_free - 1 - rank];
  return static_cast<uint32_t>(t.counters->n_ids + (rank - n_free));
}

EMB_DEVICE void write_newborn(const IndexTile& tile, const TableView& t, uint32_t row, uint64_t key) {
  char* const values = values_of(t, row);
  const uint32_t dim = static_cast<uint32_t>(t.dim);
  for (uint32_t column = 4 * tile.lane(); column < dim; column += 32)
    store_values(dtype_of(t), values, column, initial_quad(t, key, column), columns_at(dim, column));
  float* const slots = slots_of(t, row);
  for (uint64_t s = tile.lane(); s < t.n_slots; s += 8)
    slots[s] = s < t.n_accumulators ? static_cast<float>(t.initial_accumulator) : 0.0f;
}

EMB_DEVICE void write_record(const TableView& t, uint32_t row, uint64_t key, uint32_t step, uint32_t freq) {
  *meta_of(t, row) = Meta{key, step, freq};
  set_live(t, row);
  note_written(t, row);
}

// What a batch comes to; zeroed before tally_keys.
struct Tally {
  uint64_t n_new_rows;
  uint64_t n_new_candidates;
  uint64_t n_ended_candidates;
  uint64_t n_refused;
  uint64_t n_first_seen;  // by the filter
  uint64_t n_found;
};

struct KeyToCommit {
  uint64_t key;
  uint8_t status;
  uint32_t row;  // of a key that was found
  uint32_t before;
  uint64_t cell;
  uint32_t occurrences;
  uint32_t rank;  // among the keys to be inserted
};

EMB_DEVICE void set_or_insert(const IndexTile& tile, const TableView& t, const KeyToCommit& k, uint32_t word) {
  if (k.cell == kNoCell)
    insert_cell(tile, t, k.key, word);
  else if (tile.lane() == 0)
    store_relaxed(word_at(t, k.cell), word);
}

// All lanes of a tile call it; returns the key's row.
EMB_DEVICE uint32_t commit_key(const IndexTile& tile, const TableView& t, const KeyToCommit& k, uint32_t step) {
  if (k.status == kFound) {
    if (tile.lane() == 0) {
      Meta* const meta = meta_of(t, k.row);
      meta->freq = saturating_add(meta->freq, k.occurrences);
      note_written(t, k.row);
    }
    return k.row;
  }
  const uint32_t total = saturating_add(k.before, k.occurrences);
  if (k.status == kInserted) {
    const uint32_t row = new_row_id(t, k.rank);
    write_newborn(tile, t, row, k.key);
    if (tile.lane() == 0) write_record(t, row, k.key, step, total);
    set_or_insert(tile, t, k, word_of_row(row));
    return row;
  }
  if (k.status == kPending && has_counter(t))
    set_or_insert(tile, t, k, word_of_candidate(total, static_cast<uint64_t>(t.candidate_epoch)));
  if (k.status == kPending && has_bloom(t)) count_in_bloom(tile, t, k.key, k.occurrences);
  return kNoRow;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_INSERT_H_
