// Which rows go, and how they leave: a scan of the records, norms where they decide, the least by (score, key), and
// the removal of a list of rows.
//
// 1. A program of `and` and `or` only grows with its predicates: a row is certain to be selected if it holds with too
//    great a norm, and impossible if it does not with a norm of 0. The values of the others alone are read.
// 2. A selection is a set of rows (row_bits.h); `SelectionCounts` holds how many are in it.
// 3. The n least are found byte by byte, the highest first: those of the score, then eight of the key.
// 4. Cells are looked up before any is given back, so that no search meets a change.
#ifndef EMBSTORE_CUDA_EVICT_H_
#define EMBSTORE_CUDA_EVICT_H_

#include "../core/eviction.h"
#include "../core/reduce.h"
#include "arena.h"
#include "index.h"
#include "row_bits.h"

namespace embstore::cuda {

struct SelectionCounts {
  uint64_t n_scanned;  // live rows
  uint64_t n_selected;
};

// ---- what a program says of a row

struct Program {
  const Predicate* predicates;
  uint32_t n;
  int64_t step;
};

EMB_DEVICE RowFacts facts_of(const TableView& t, const Program& program, uint32_t row, float norm) {
  const Meta* const meta = meta_of(t, row);
  return RowFacts{age_of(program.step, t.step_base + meta->step), meta->freq, norm};
}

EMB_DEVICE bool is_chosen(const Program& program, const RowFacts& facts) {
  return is_evictable(program.predicates, program.n, facts);
}

EMB_DEVICE float value_at(Dtype dtype, const char* values, uint64_t column) {
  if (dtype == Dtype::kF32) return reinterpret_cast<const float*>(values)[column];
  return widen(dtype, reinterpret_cast<const uint16_t*>(values)[column]);
}

// As row_norm of core/reduce.h, by 8 lanes that hold two partial sums each; all of them get it.
EMB_DEVICE float row_norm_by_lanes(const Tile<8>& tile, const TableView& t, uint32_t row) {
  const char* const values = values_of(t, row);
  const Dtype dtype = dtype_of(t);
  float low = 0.0f, high = 0.0f;
  for (uint64_t column = tile.lane(); column < t.dim; column += kRowPartials) {
    const float x = value_at(dtype, values, column);
    low = low + x * x;
    const float y = column + 8 < t.dim ? value_at(dtype, values, column + 8) : 0.0f;
    high = high + y * y;
  }
  float sum = low + high;
  for (uint32_t by = 4; by > 0; by /= 2) sum = sum + tile.shfl_xor(sum, by);
  return square_root(sum);
}

// Each lane has a row, the next lane the next one; the norm of its row for each that is open.
EMB_DEVICE float norm_if_open(const TableView& t, uint32_t row, bool is_open) {
  const Tile<8> tile = Tile<8>::here();
  float norm = 0.0f;
  for (uint32_t open = tile.ballot(is_open); open != 0; open &= open - 1) {
    const uint32_t lane = first_bit(open);
    const float of_lane = row_norm_by_lanes(tile, t, row - tile.lane() + lane);
    if (tile.lane() == lane) norm = of_lane;
  }
  return norm;
}

// All lanes of a warp call these.
EMB_DEVICE bool is_selected_by_record(const TableView& t, const Program& program, uint32_t row, bool is_live) {
  return is_live && is_chosen(program, facts_of(t, program, row, 0.0f));
}

EMB_DEVICE bool is_selected_by_norm(const TableView& t, const Program& program, uint32_t row, bool is_live) {
  constexpr uint32_t kInfinity = 0x7F800000u;
  bool is_selected = is_live && is_chosen(program, facts_of(t, program, row, float_of(kInfinity)));
  const bool is_open = is_live && !is_selected && is_chosen(program, facts_of(t, program, row, 0.0f));
  const float norm = norm_if_open(t, row, is_open);
  if (is_open) is_selected = is_chosen(program, facts_of(t, program, row, norm));
  return is_selected;
}

// Makes the selection of a range: the live rows for which is_selected(row, whether it is live) holds.
template <class IsSelected>
EMB_DEVICE void select_rows(const uint32_t* live, const RowRange& range, const IsSelected& is_selected,
                            uint32_t* selected, SelectionCounts* counts) {
  const WordTile warp = WordTile::here();
  uint32_t n_scanned = 0, n_selected = 0;  // ids have 32 bits
  for_each_word(range, [&](uint64_t w) {
    const uint32_t in_word = live[w] & bits_within(range, w);
    const uint32_t row = static_cast<uint32_t>(w * kWordRows + warp.lane());
    const uint32_t bits = in_word != 0 ? warp.ballot(is_selected(row, has_bit(in_word, warp.lane()))) : 0;
    if (warp.lane() == 0) selected[w] = bits;
    n_scanned += n_bits(in_word);
    n_selected += n_bits(bits);
  });
  if (warp.lane() != 0) return;
  if (n_scanned != 0) fetch_add(&counts->n_scanned, uint64_t{n_scanned});
  if (n_selected != 0) fetch_add(&counts->n_selected, uint64_t{n_selected});
}

// Takes rows out of a selection of all ids; kNoRow is passed over.
EMB_DEVICE void spare_rows(const uint32_t* rows, uint64_t n, uint32_t* selected, SelectionCounts* counts) {
  uint32_t n_spared = 0;
  for (uint64_t i = grid_thread(); i < n; i += grid_threads())
    n_spared += rows[i] != kNoRow && drop_row(selected, rows[i]);
  count_down(&counts->n_selected, n_spared);
}

// Takes the rows of keys out of a selection of a range.
EMB_DEVICE void spare_keys(const TableView& t, const int64_t* keys, uint64_t n, const RowRange& range,
                           uint32_t* selected, SelectionCounts* counts) {
  const IndexTile tile = IndexTile::here();
  uint32_t n_spared = 0;
  for (uint64_t i = tile.number(); i < n; i += IndexTile::count()) {
    const uint32_t word = find_cell(tile, t, static_cast<uint64_t>(keys[i])).word;
    const bool is_in_range = is_row_word(word) && holds(range, row_of_word(word));
    if (tile.lane() == 0 && is_in_range) n_spared += drop_row(selected, row_of_word(word));
  }
  count_down(&counts->n_selected, n_spared);
}

// ---- the n least

// By what, and then by the key. Heat is freq, then step; the hottest come last of the coldest.
enum class RankBy : uint64_t { kStep = 0, kFreq = 1, kColdest = 2, kHottest = 3 };

// The order of rows as numbers without a sign. Scores by step or freq alone have four bytes: the low ones.
struct Rank {
  uint64_t score;
  uint64_t key;
};

EMB_CONST uint32_t kScoreBytes = 8;
EMB_CONST uint64_t kKeySign = 1ull << 63;

EMB_DEVICE uint64_t heat_of(const Meta& meta) { return uint64_t{meta.freq} << 32 | meta.step; }

EMB_DEVICE Rank rank_of(const TableView& t, uint32_t row, RankBy by) {
  const Meta meta = *meta_of(t, row);
  const uint64_t key = meta.key ^ kKeySign;
  if (by == RankBy::kStep) return Rank{meta.step, key};
  if (by == RankBy::kFreq) return Rank{meta.freq, key};
  const uint64_t heat = heat_of(meta);
  return by == RankBy::kColdest ? Rank{heat, key} : Rank{~heat, ~key};
}

// Byte 0 is the highest of the score, byte 8 that of the key.
EMB_DEVICE uint32_t byte_of(const Rank& rank, uint32_t place) {
  const uint64_t word = place < kScoreBytes ? rank.score : rank.key;
  return static_cast<uint32_t>(word >> (56 - 8 * (place % kScoreBytes)) & 0xFFu);
}

// Whether the first n bytes of two words of eight are the same.
EMB_DEVICE bool do_begin_alike(uint64_t a, uint64_t b, uint32_t n) { return n == 0 || (a ^ b) >> (64 - 8 * n) == 0; }

// Whether the first n bytes are the same.
EMB_DEVICE bool do_agree(const Rank& a, const Rank& b, uint32_t n) {
  if (n <= kScoreBytes) return do_begin_alike(a.score, b.score, n);
  return a.score == b.score && do_begin_alike(a.key, b.key, n - kScoreBytes);
}

EMB_DEVICE bool is_beyond(const Rank& rank, const Rank& limit) {
  return rank.score != limit.score ? rank.score > limit.score : rank.key > limit.key;
}

// Counts byte number n_known of the selected rows whose first n_known bytes are those of `known`, into a block's bins.
EMB_DEVICE void count_ranks(const TableView& t, const uint32_t* selected, const RowRange& range, RankBy by,
                            const Rank& known, uint32_t n_known, uint32_t* bins) {
  for_each_row(selected, range, [&](uint32_t row, bool is_in) {
    const Rank rank = is_in ? rank_of(t, row, by) : Rank{0, 0};
    add_to_bins(bins, is_in && do_agree(rank, known, n_known), byte_of(rank, n_known));
  });
}

// Takes the rows beyond the limit out of a selection.
EMB_DEVICE void keep_first(const TableView& t, const RowRange& range, RankBy by, const Rank& limit,
                           uint32_t* selected) {
  const WordTile warp = WordTile::here();
  for_each_row(selected, range, [&](uint32_t row, bool is_in) {
    const uint32_t kept = warp.ballot(is_in && !is_beyond(rank_of(t, row, by), limit));
    warp.sync();  // all have read the word
    if (warp.lane() == 0) selected[row / kWordRows] = kept;
  });
}

// ---- leaving

// The cells of the keys of rows.
EMB_DEVICE void find_row_cells(const TableView& t, const uint32_t* rows, uint64_t n, uint64_t* cells) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t i = tile.number(); i < n; i += IndexTile::count()) {
    const uint64_t cell = find_cell(tile, t, meta_of(t, rows[i])->key).cell;
    if (tile.lane() == 0) cells[i] = cell;
  }
}

// A row may have lost its cell (cache.h). The rows' ids may be given out again, once settle_removal has counted them.
EMB_DEVICE void remove_rows(const TableView& t, const uint32_t* rows, const uint64_t* cells, uint64_t n) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) {
    const uint32_t row = rows[i];
    if (cells[i] != kNoCell) free_cell(t, cells[i]);
    set_dead(t, row);
    note_gone(t, row);
    t.free_rows[t.counters->n_free + i] = row;
    if (t.removed_keys != nullptr) t.removed_keys[t.counters->n_log + i] = static_cast<int64_t>(meta_of(t, row)->key);
  }
}

EMB_DEVICE void settle_removal(const TableView& t, uint64_t n, bool is_erasure) {
  Counters* const c = t.counters;
  c->n_live -= n;
  c->n_free += n;
  c->n_removals += n;
  if (t.removed_keys != nullptr) c->n_log += n;
  if (is_erasure)
    c->n_erased += n;
  else
    c->n_evicted += n;
}

// Of keys that are to be erased: their rows are put into a set, and the cells of candidates are named, kNoCell where
// there is none. Keys may come twice.
EMB_DEVICE void mark_erased(const TableView& t, const int64_t* keys, uint64_t n, uint32_t* rows, uint64_t* cells) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t i = tile.number(); i < n; i += IndexTile::count()) {
    const CellOf found = find_cell(tile, t, static_cast<uint64_t>(keys[i]));
    if (tile.lane() != 0) continue;
    if (is_row_word(found.word)) put_row(rows, row_of_word(found.word));
    cells[i] = is_candidate_word(found.word) ? found.cell : kNoCell;
  }
}

EMB_DEVICE void drop_candidates(const TableView& t, const uint64_t* cells, uint64_t n) {
  uint32_t n_dropped = 0;
  for (uint64_t i = grid_thread(); i < n; i += grid_threads())
    if (cells[i] != kNoCell) n_dropped += exchange(word_at(t, cells[i]), kWordEmpty) != kWordEmpty;
  count_down(&t.counters->n_candidates, n_dropped);
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_EVICT_H_
