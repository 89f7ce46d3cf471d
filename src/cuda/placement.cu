// Promotion: count, find, (lists: row_bits.cu, cells: evict.cu), swap.
#include "embstore/cuda/placement.h"

using namespace embstore;
using namespace embstore::cuda;

struct CountHostRowsArgs {
  const TableView* table;
  uint64_t n_ids;
  uint64_t n_card_rows;
  uint64_t* count;  // added to
};

EMB_KERNEL(count_rows_of_host, CountHostRowsArgs) {
  count_host_rows(*a.table, RowRange{0, a.n_ids}, a.n_card_rows, a.count);
}

struct FindSwapsArgs {
  const TableView* table;
  const uint32_t* cold;  // a set: the coldest live rows, as many as the host has
  uint64_t n_ids;
  uint64_t n_card_rows;
  uint64_t limit;      // heat of the hottest among them
  uint32_t* rising;    // a set
  uint32_t* falling;   // a set
  SwapCounts* counts;  // added to
};

EMB_KERNEL(find_rows_to_swap, FindSwapsArgs) {
  find_swaps(*a.table, a.cold, RowRange{0, a.n_ids}, a.n_card_rows, a.limit, a.rising, a.falling, a.counts);
}

struct SwapRowsArgs {
  const TableView* table;
  const uint32_t* rising;  // distinct live rows, of no other list
  const uint64_t* rising_cells;
  const uint32_t* falling;
  const uint64_t* falling_cells;
  uint64_t n;
  uint32_t* taken;  // the set of a change log that may come back, or null
};

EMB_KERNEL(swap_listed_rows, SwapRowsArgs) {
  const RowTile tile = RowTile::here();
  for (uint64_t i = tile.number(); i < a.n; i += RowTile::count())
    swap_rows(tile, *a.table, RowAndCell{a.rising[i], a.rising_cells[i]}, RowAndCell{a.falling[i], a.falling_cells[i]},
              a.taken);
}
