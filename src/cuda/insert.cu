// find_or_insert on the distinct keys of a batch: look up, (scan of ranks), tally, commit, settle.
#include "embstore/cuda/insert.h"

#include "embstore/cuda/order.h"

using namespace embstore;
using namespace embstore::cuda;

struct LookUpArgs {
  const TableView* table;
  const uint64_t* keys;  // (n_unique,) distinct
  const uint64_t* n_unique;
  const uint64_t* occurrences;  // (n_unique,) or null: none
  uint64_t admits;
  uint8_t* status;
  uint32_t* rows;
  uint32_t* before;
  uint64_t* cells;
  uint32_t* is_new;  // whether the key is to be inserted
};

EMB_KERNEL(look_up, LookUpArgs) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    const uint32_t occurrences = a.occurrences != nullptr ? saturated(a.occurrences[u]) : 0;
    const Decision d = decide(tile, *a.table, a.keys[u], occurrences, static_cast<Admits>(a.admits));
    if (tile.lane() != 0) continue;
    a.status[u] = d.status;
    a.rows[u] = d.row;
    a.before[u] = d.before;
    a.cells[u] = d.cell;
    a.is_new[u] = d.status == kInserted;
  }
}

struct TallyKeysArgs {
  const TableView* table;
  const uint64_t* n_unique;
  const uint8_t* status;
  const uint32_t* before;
  const uint64_t* cells;
  Tally* tally;
};

EMB_DEVICE void add_to_tally(uint32_t own, uint32_t* warp_sums, uint64_t* sum) {
  const BlockPrefix prefix = block_prefix(own, warp_sums);
  if (block_thread() == 0 && prefix.total != 0) fetch_add(sum, uint64_t{prefix.total});
}

EMB_KERNEL(tally_keys, TallyKeysArgs) {
  EMB_SHARED(uint32_t, warp_sums, kBlockWarps);
  const TableView& t = *a.table;
  uint32_t n_new = 0, n_candidates = 0, n_ended = 0, n_refused = 0, n_first_seen = 0, n_found = 0;
  for (uint64_t u = grid_thread(); u < *a.n_unique; u += grid_threads()) {
    const uint8_t status = a.status[u];
    const bool has_cell = a.cells[u] != kNoCell;
    n_new += status == kInserted;
    n_candidates += status == kPending && has_counter(t) && !has_cell;
    n_ended += status == kInserted && has_cell;
    n_refused += status == kRefused;
    n_first_seen += status == kPending && has_bloom(t) && a.before[u] == 0;
    n_found += status == kFound;
  }
  add_to_tally(n_new, warp_sums, &a.tally->n_new_rows);
  add_to_tally(n_candidates, warp_sums, &a.tally->n_new_candidates);
  add_to_tally(n_ended, warp_sums, &a.tally->n_ended_candidates);
  add_to_tally(n_refused, warp_sums, &a.tally->n_refused);
  add_to_tally(n_first_seen, warp_sums, &a.tally->n_first_seen);
  add_to_tally(n_found, warp_sums, &a.tally->n_found);
}

struct CommitKeysArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint64_t* occurrences;  // or null: none, and hits are not counted
  const uint8_t* status;
  uint32_t* rows;
  const uint32_t* before;  // or null: none
  const uint64_t* cells;
  const uint32_t* ranks;
  uint64_t step;   // relative
  const Now* now;  // of a captured graph, in place of `step`; or null
};

EMB_KERNEL(commit_keys, CommitKeysArgs) {
  const IndexTile tile = IndexTile::here();
  const bool has_counts = a.occurrences != nullptr;
  const uint32_t step = static_cast<uint32_t>(a.now != nullptr ? a.now->step : a.step);
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    const KeyToCommit k = {a.keys[u],
                           a.status[u],
                           a.status[u] == kFound ? a.rows[u] : kNoRow,
                           a.before != nullptr ? a.before[u] : 0,
                           a.cells[u],
                           has_counts ? saturated(a.occurrences[u]) : 0,
                           a.ranks[u]};
    if (k.status == kFound && !has_counts) continue;
    const uint32_t row = commit_key(tile, *a.table, k, step);
    if (tile.lane() == 0 && k.status != kFound) a.rows[u] = row;
  }
}

struct SettleInsertArgs {
  const TableView* table;
  const Tally* tally;
};

EMB_KERNEL(settle_insert, SettleInsertArgs) {
  if (grid_thread() != 0) return;
  Counters& c = *a.table->counters;
  const uint64_t n_new = a.tally->n_new_rows;
  const uint64_t n_reused = n_new < c.n_free ? n_new : c.n_free;
  c.n_free -= n_reused;
  c.n_ids += n_new - n_reused;
  c.n_live += n_new;
  c.n_inserted += n_new;
  c.n_candidates += a.tally->n_new_candidates - a.tally->n_ended_candidates;
  c.n_refused += a.tally->n_refused;
  c.n_bloom_added += a.tally->n_first_seen;
}

struct FindCellsArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  uint64_t* cells;
};

// Once more, where the index has moved since.
EMB_KERNEL(find_cells, FindCellsArgs) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    const uint64_t cell = find_cell(tile, *a.table, a.keys[u]).cell;
    if (tile.lane() == 0) a.cells[u] = cell;
  }
}

struct FlagStatusArgs {
  const uint64_t* n_unique;
  const uint8_t* status;
  uint64_t wanted;
  uint32_t* flags;
};

EMB_KERNEL(flag_status, FlagStatusArgs) {
  for (uint64_t u = grid_thread(); u < *a.n_unique; u += grid_threads()) a.flags[u] = a.status[u] == a.wanted;
}

struct EraseKeysArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint32_t* rows;
  const uint64_t* cells;
  uint32_t* is_candidate;  // (n_unique,)
};

// Ends the candidates among the keys; rows are removed by remove_rows.
EMB_KERNEL(erase_candidates, EraseKeysArgs) {
  for (uint64_t u = grid_thread(); u < *a.n_unique; u += grid_threads()) {
    const bool is_candidate = a.cells[u] != kNoCell && a.rows[u] == kNoRow;
    a.is_candidate[u] = is_candidate;
    if (is_candidate) free_cell(*a.table, a.cells[u]);
  }
}

struct MoveLinesArgs {
  const TableView* table;
  const Line* from;
  uint64_t n;
};

// Rehashes an older index into the table's, which is empty.
EMB_KERNEL(move_lines, MoveLinesArgs) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t line = tile.number(); line < a.n; line += IndexTile::count()) move_line(tile, *a.table, a.from + line);
}
