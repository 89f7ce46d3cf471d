// Rows in and out: complete records of a list of rows, their keys in the order of files, candidates, the change log.
//
// 1. Eight lanes copy a row, 16 bytes each where both sides are aligned to that.
// 2. A row that is imported exists already: the index names it, and nobody else writes it in the launch.
// 3. Steps cross as absolute numbers.
#ifndef EMBSTORE_CUDA_TRANSFER_H_
#define EMBSTORE_CUDA_TRANSFER_H_

#include "arena.h"
#include "index.h"
#include "row_bits.h"

namespace embstore::cuda {

using RowTile = Tile<8>;

EMB_DEVICE bool are_aligned(const void* a, const void* b, uint64_t n_bytes, uint64_t to) {
  return ((reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b) | n_bytes) & (to - 1)) == 0;
}

// An even number of bytes, by the lanes of a tile.
EMB_DEVICE void copy_bytes(const RowTile& tile, char* to, const char* from, uint64_t n_bytes) {
  if (are_aligned(to, from, n_bytes, 16)) {
    for (uint64_t at = 16 * tile.lane(); at < n_bytes; at += 16 * 8) store16(to + at, load16(from + at));
  } else if (are_aligned(to, from, n_bytes, 4)) {
    for (uint64_t at = 4 * tile.lane(); at < n_bytes; at += 4 * 8)
      *reinterpret_cast<uint32_t*>(to + at) = *reinterpret_cast<const uint32_t*>(from + at);
  } else {
    for (uint64_t at = 2 * tile.lane(); at < n_bytes; at += 2 * 8)
      *reinterpret_cast<uint16_t*>(to + at) = *reinterpret_cast<const uint16_t*>(from + at);
  }
}

EMB_DEVICE uint64_t value_bytes(const TableView& t) { return t.dim * size_of(dtype_of(t)); }
EMB_DEVICE uint64_t slot_bytes(const TableView& t) { return t.n_slots * sizeof(float); }

// Arrays of complete rows, in the device's memory.
struct RowArrays {
  int64_t* keys;
  char* values;
  float* slots;  // any of these three may be null
  uint32_t* freq;
  int64_t* step;
};

EMB_DEVICE void gather_row(const RowTile& tile, const TableView& t, uint32_t row, uint64_t i, const RowArrays& out) {
  copy_bytes(tile, out.values + i * value_bytes(t), values_of(t, row), value_bytes(t));
  copy_bytes(tile, reinterpret_cast<char*>(out.slots + i * t.n_slots), reinterpret_cast<const char*>(slots_of(t, row)),
             slot_bytes(t));
  if (tile.lane() != 0) return;
  const Meta* const meta = meta_of(t, row);
  out.keys[i] = static_cast<int64_t>(meta->key);
  out.freq[i] = meta->freq;
  out.step[i] = t.step_base + meta->step;
}

EMB_DEVICE void gather_rows(const TableView& t, const uint32_t* rows, uint64_t n, const RowArrays& out) {
  const RowTile tile = RowTile::here();
  for (uint64_t i = tile.number(); i < n; i += RowTile::count()) gather_row(tile, t, rows[i], i, out);
}

// ---- import

EMB_DEVICE void birth_slots(const RowTile& tile, const TableView& t, float* slots) {
  for (uint64_t i = tile.lane(); i < t.n_slots; i += 8)
    slots[i] = i < t.n_accumulators ? static_cast<float>(t.initial_accumulator) : 0.0f;
}

// Whether the step was before the base.
EMB_DEVICE bool import_row(const RowTile& tile, const TableView& t, uint32_t row, uint64_t i, const RowArrays& in,
                           int64_t step_of_all) {
  copy_bytes(tile, values_of(t, row), in.values + i * value_bytes(t), value_bytes(t));
  if (in.slots != nullptr)
    copy_bytes(tile, reinterpret_cast<char*>(slots_of(t, row)), reinterpret_cast<const char*>(in.slots + i * t.n_slots),
               slot_bytes(t));
  else
    birth_slots(tile, t, slots_of(t, row));
  const int64_t step = in.step != nullptr ? in.step[i] : step_of_all;
  const bool is_clamped = step < t.step_base;
  if (tile.lane() != 0) return false;
  Meta* const meta = meta_of(t, row);
  meta->freq = in.freq != nullptr ? in.freq[i] : 0;
  meta->step = is_clamped ? 0 : static_cast<uint32_t>(step - t.step_base);
  note_written(t, row);
  return is_clamped;
}

// rows[i] gets row i of the arrays; without steps, `step_of_all`.
EMB_DEVICE void import_rows(const TableView& t, const uint32_t* rows, uint64_t n, const RowArrays& in,
                            int64_t step_of_all) {
  const RowTile tile = RowTile::here();
  uint32_t n_clamped = 0;
  for (uint64_t i = tile.number(); i < n; i += RowTile::count())
    n_clamped += import_row(tile, t, rows[i], i, in, step_of_all);
  count_up(&t.counters->n_steps_clamped, n_clamped);
}

// ---- keys in the order of files

EMB_DEVICE void read_row_keys(const TableView& t, const uint32_t* rows, uint64_t n, uint64_t* keys) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) keys[i] = meta_of(t, rows[i])->key;
}

// Rounds are whole blocks, so that all lanes of a warp take part.
EMB_DEVICE void count_partitions(const uint64_t* keys, uint64_t n, uint32_t* bins) {
  const uint64_t n_rounds = (n + kBlockThreads - 1) / kBlockThreads * kBlockThreads;
  for (uint64_t i = grid_thread(); i < n_rounds; i += grid_threads())
    add_to_bins(bins, i < n, i < n ? partition_of(keys[i]) : 0);
}

// out[i] = from[order[i]]
template <class T>
EMB_DEVICE void put_in_order(const T* from, const uint32_t* order, uint64_t n, T* out) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) out[i] = from[order[i]];
}

// ---- candidates

EMB_DEVICE uint32_t n_candidates_of(const Line& line) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < kCells; ++i) n += is_candidate_word(line.word[i]);
  return n;
}

// counts[i] = the candidates of line i.
EMB_DEVICE void count_candidates(const TableView& t, uint32_t* counts) {
  for (uint64_t i = grid_thread(); i < t.n_lines; i += grid_threads()) counts[i] = n_candidates_of(t.lines[i]);
}

// places[i] = the candidates before line i.
EMB_DEVICE void list_candidates(const TableView& t, const uint32_t* places, uint64_t* cells, uint64_t* keys) {
  for (uint64_t i = grid_thread(); i < t.n_lines; i += grid_threads()) {
    uint64_t at = places[i];
    for (uint32_t place = 0; place < kCells; ++place) {
      if (!is_candidate_word(t.lines[i].word[place])) continue;
      cells[at] = i * kCells + place;
      keys[at++] = t.lines[i].key[place];
    }
  }
}

struct CandidateArrays {
  int64_t* keys;
  uint32_t* counts;
  int64_t* epochs;
};

EMB_DEVICE void read_candidates(const TableView& t, const uint64_t* cells, uint64_t n, const CandidateArrays& out) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) {
    const uint64_t cell = cells[i];
    const uint32_t word = *word_at(t, cell);
    out.keys[i] = static_cast<int64_t>(key_at(t, cell));
    out.counts[i] = candidate_count(word);
    out.epochs[i] = candidate_epoch(word, t.candidate_epoch);
  }
}

// The keys are distinct and absent, and the index has cells enough.
EMB_DEVICE void insert_candidates(const TableView& t, const CandidateArrays& in, uint64_t n) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t i = tile.number(); i < n; i += IndexTile::count())
    insert_cell(tile, t, static_cast<uint64_t>(in.keys[i]),
                word_of_candidate(in.counts[i], static_cast<uint64_t>(in.epochs[i])));
  if (grid_thread() == 0) t.counters->n_candidates += n;
}

// ---- the change log

// Of removed keys in order: is_gone[i] is whether key i is the first of its like and has no row now.
EMB_DEVICE void mark_gone(const TableView& t, const int64_t* keys, uint64_t n, uint32_t* is_gone) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t i = tile.number(); i < n; i += IndexTile::count()) {
    const bool is_first = i == 0 || keys[i] != keys[i - 1];
    const bool has_row = is_row_word(find_cell(tile, t, static_cast<uint64_t>(keys[i])).word);
    if (tile.lane() == 0) is_gone[i] = is_first && !has_row;
  }
}

// Writes the keys of rows behind those that the log holds.
EMB_DEVICE void log_removed(const TableView& t, const uint32_t* rows, uint64_t n) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads())
    t.removed_keys[t.counters->n_log + i] = static_cast<int64_t>(meta_of(t, rows[i])->key);
}

// Nothing lives any more. The host empties the index, the sets and the filter.
EMB_DEVICE void settle_clear(const TableView& t) {
  Counters* const c = t.counters;
  c->n_erased += c->n_live;
  if (t.removed_keys != nullptr) c->n_log += c->n_live;
  c->n_live = c->n_ids = c->n_free = c->n_candidates = c->n_bloom_added = 0;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_TRANSFER_H_
