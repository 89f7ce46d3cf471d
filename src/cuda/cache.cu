// Inserting into a cache: spare, claim, (scans), (victims out), births, settle; and importing into one.
#include "embstore/cuda/cache.h"

using namespace embstore;
using namespace embstore::cuda;

struct SpareBatchArgs {
  const uint32_t* rows;  // (n_unique,); kNoRow is passed over
  const uint64_t* n_unique;
  uint32_t* spared;
};

EMB_KERNEL(spare_rows_of_batch, SpareBatchArgs) {
  for (uint64_t u = grid_thread(); u < *a.n_unique; u += grid_threads())
    if (a.rows[u] != kNoRow) put_row(a.spared, a.rows[u]);
}

struct SparePinsArgs {
  const TableView* table;
  const PinnedKeys* pins;
  uint32_t* spared;
};

EMB_KERNEL(spare_rows_of_pins, SparePinsArgs) {
  const IndexTile tile = IndexTile::here();
  for (uint64_t i = tile.number(); i < a.pins->n; i += IndexTile::count()) {
    const uint32_t word = find_cell(tile, *a.table, static_cast<uint64_t>(a.pins->keys[i])).word;
    if (tile.lane() == 0 && is_row_word(word)) put_row(a.spared, row_of_word(word));
  }
}

struct ClaimCellsArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint32_t* ranks;   // among the keys to be inserted
  const uint32_t* spared;  // rows that are no victims
  uint64_t max_rows;
  uint64_t is_by_freq;
  uint8_t* status;
  uint64_t* cells;
  uint32_t* victims;       // kNoRow without one
  uint32_t* is_from_free;  // whether it takes a free cell
  uint32_t* is_evicting;   // whether it has a victim
};

EMB_KERNEL(claim_cells, ClaimCellsArgs) {
  const IndexTile tile = IndexTile::here();
  const uint64_t n_spare = a.max_rows - a.table->counters->n_live;
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    const bool is_new = a.status[u] == kInserted;
    Claim claim = {kNoCell, kNoRow};
    if (is_new) claim = claim_cell(tile, *a.table, a.keys[u], a.ranks[u] < n_spare, a.spared, a.is_by_freq != 0);
    tile.sync();  // all lanes have read the status
    if (tile.lane() != 0) continue;
    const bool has_cell = claim.cell != kNoCell, has_victim = claim.victim != kNoRow;
    a.victims[u] = claim.victim;
    a.is_from_free[u] = has_cell && !has_victim;
    a.is_evicting[u] = has_victim;
    if (is_new) a.cells[u] = claim.cell;
    if (is_new && !has_cell) a.status[u] = kRefused;
  }
}

struct ListVictimsArgs {
  const uint64_t* n_unique;
  const uint32_t* victims;
  const uint32_t* places;
  uint32_t* out;
};

EMB_KERNEL(list_cache_victims, ListVictimsArgs) {
  for (uint64_t u = grid_thread(); u < *a.n_unique; u += grid_threads())
    if (a.victims[u] != kNoRow) a.out[a.places[u]] = a.victims[u];
}

struct CommitCacheArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint64_t* occurrences;  // or null: none, and hits are not counted
  const uint8_t* status;
  uint32_t* rows;
  const uint32_t* before;  // or null: none
  const uint64_t* cells;
  const uint32_t* victims;
  const uint32_t* free_places;
  const uint32_t* gone_places;
  uint64_t step;   // relative
  const Now* now;  // of a captured graph, in place of `step`; or null
};

EMB_KERNEL(commit_cache_keys, CommitCacheArgs) {
  const IndexTile tile = IndexTile::here();
  const bool has_counts = a.occurrences != nullptr;
  const uint32_t step = static_cast<uint32_t>(a.now != nullptr ? a.now->step : a.step);
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    const uint8_t status = a.status[u];
    const uint32_t n = has_counts ? saturated(a.occurrences[u]) : 0, before = a.before != nullptr ? a.before[u] : 0;
    if (status == kInserted) {
      const Birth birth = {
          a.keys[u], a.cells[u], a.victims[u], a.free_places[u], a.gone_places[u], step, saturating_add(before, n)};
      const uint32_t row = write_birth(tile, *a.table, birth);
      if (tile.lane() == 0) a.rows[u] = row;
    } else if (status == kPending || has_counts) {
      commit_key(tile, *a.table, KeyToCommit{a.keys[u], status, a.rows[u], before, kNoCell, n, 0}, step);
    }
  }
}

struct SettleCacheArgs {
  const TableView* table;
  const Tally* batch;
  const CacheTally* cache;
};

EMB_KERNEL(settle_cache, SettleCacheArgs) {
  if (grid_thread() == 0) settle_births(*a.table, *a.batch, *a.cache);
}

struct RestoreKeysArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint8_t* status;
  uint32_t* rows;
  const uint32_t* ranks;
  uint64_t step;         // relative
  uint32_t* homeless;    // rows without a cell
  uint64_t* n_homeless;  // added to
};

// Births of an import, in free rows; settle_insert counts them.
EMB_KERNEL(restore_cache_keys, RestoreKeysArgs) {
  const IndexTile tile = IndexTile::here();
  const TableView& t = *a.table;
  for (uint64_t u = tile.number(); u < *a.n_unique; u += IndexTile::count()) {
    if (a.status[u] != kInserted) continue;
    const uint32_t row = new_row_id(t, a.ranks[u]);
    write_newborn(tile, t, row, a.keys[u]);
    if (tile.lane() == 0) write_record(t, row, a.keys[u], static_cast<uint32_t>(a.step), 0);
    const uint32_t homeless = place_key(tile, t, a.keys[u], row);
    if (tile.lane() != 0) continue;
    a.rows[u] = row;
    if (homeless != kNoRow) a.homeless[fetch_add(a.n_homeless, uint64_t{1})] = homeless;
  }
}
