// Hot rows of the host's memory change places with cold rows of the card's.
//
// 1. Rows of ids below n_card_rows lie in the card's memory, the others in pinned memory of the host (arena.h).
// 2. Which rows change is decided by their ranks (evict.h), of which no two are alike, so that no race decides.
// 3. Rows change in pairs of live rows, each in one pair, so no two tiles meet in a row. All that a row id names goes
//    along: values, slots, record, its bits in change logs, and the cell of its key. Counts and live bits stay.
// 4. Cells are looked up before any row moves. Whoever remembers a row id sees by the record's key that it moved.
#ifndef EMBSTORE_CUDA_PLACEMENT_H_
#define EMBSTORE_CUDA_PLACEMENT_H_

#include "evict.h"
#include "transfer.h"

namespace embstore::cuda {

// Live rows beyond those of the card.
EMB_DEVICE void count_host_rows(const TableView& t, const RowRange& range, uint64_t n_card_rows, uint64_t* count) {
  uint32_t n = 0;
  for_each_row(t.live, range, [&](uint32_t row, bool is_live) { n += is_live && row >= n_card_rows; });
  count_up(count, n);
}

// Rows whose heat is that of the limit gain nothing by changing places with each other.
struct SwapCounts {
  uint64_t n_rising;
  uint64_t n_rising_tied;
  uint64_t n_falling_tied;
};

// `cold` holds the coldest live rows, as many as the host has. Rows of the card among them shall fall, rows of the host
// that are not shall rise: as many.
EMB_DEVICE void find_swaps(const TableView& t, const uint32_t* cold, const RowRange& range, uint64_t n_card_rows,
                           uint64_t limit, uint32_t* rising, uint32_t* falling, SwapCounts* counts) {
  const WordTile warp = WordTile::here();
  uint32_t n_rising = 0, n_rising_tied = 0, n_falling_tied = 0;
  for_each_word(range, [&](uint64_t w) {
    const uint32_t row = static_cast<uint32_t>(w * kWordRows + warp.lane());
    const uint32_t live = t.live[w] & bits_within(range, w);
    const uint32_t on_card = warp.ballot(row < n_card_rows);
    const uint32_t up = live & ~cold[w] & ~on_card, down = live & cold[w] & on_card;
    if (warp.lane() == 0) rising[w] = up;
    if (warp.lane() == 0) falling[w] = down;
    if ((up | down) == 0) return;
    const bool is_tied = has_bit(up | down, warp.lane()) && heat_of(*meta_of(t, row)) == limit;
    n_rising += has_bit(up, warp.lane());
    n_rising_tied += is_tied && has_bit(up, warp.lane());
    n_falling_tied += is_tied && has_bit(down, warp.lane());
  });
  count_up(&counts->n_rising, n_rising);
  count_up(&counts->n_rising_tied, n_rising_tied);
  count_up(&counts->n_falling_tied, n_falling_tied);
}

// ---- changing places

// Of 16-byte aligned rows, by the lanes of a tile.
EMB_DEVICE void swap_bytes(const RowTile& tile, char* a, char* b, uint64_t n_bytes) {
  for (uint64_t at = 16 * tile.lane(); at < n_bytes; at += 16 * 8) {
    const Pair of_a = load16(a + at), of_b = load16(b + at);
    store16(a + at, of_b);
    store16(b + at, of_a);
  }
}

// Of two rows in a set, whose words others change too.
EMB_DEVICE void swap_bits(uint32_t* set, uint32_t a, uint32_t b) {
  const bool has_a = has_bit(load_relaxed(&set[a / kWordRows]), a % kWordRows);
  const bool has_b = has_bit(load_relaxed(&set[b / kWordRows]), b % kWordRows);
  if (has_a == has_b) return;
  drop_row(set, has_a ? a : b);
  put_row(set, has_a ? b : a);
}

struct RowAndCell {
  uint32_t row;
  uint64_t cell;  // of its key
};

// All lanes of a tile call it. `taken` is the set of a change log that may come back, or null.
EMB_DEVICE void swap_rows(const RowTile& tile, const TableView& t, const RowAndCell& a, const RowAndCell& b,
                          uint32_t* taken) {
  swap_bytes(tile, values_of(t, a.row), values_of(t, b.row), t.row_bytes);
  if (tile.lane() != 0) return;
  Meta* const of_a = meta_of(t, a.row);
  Meta* const of_b = meta_of(t, b.row);
  const Meta meta = *of_a;
  *of_a = *of_b;
  *of_b = meta;
  if (t.dirty != nullptr) swap_bits(t.dirty, a.row, b.row);
  if (taken != nullptr) swap_bits(taken, a.row, b.row);
  store_relaxed(word_at(t, a.cell), word_of_row(b.row));
  store_relaxed(word_at(t, b.cell), word_of_row(a.row));
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_PLACEMENT_H_
