// Training: resolve, prepare, (sums: gradients.cu), update, settle. Assigning: positions or sums, check, assign.
#include "embstore/cuda/update.h"

#include "embstore/cuda/order.h"

using namespace embstore;
using namespace embstore::cuda;

struct PrepareUpdateArgs {
  const TableView* table;
  double lr;
  double beta1_power;
  double beta2_power;
  const Now* now;  // of a captured graph, in place of the three; or null
  UpdateScalars* scalars;
};

// The constants of one call, and its counts cleared. By one thread.
EMB_KERNEL(prepare_update, PrepareUpdateArgs) {
  if (grid_thread() != 0) return;
  const Now now = a.now != nullptr ? *a.now : Now{0, 0, a.lr, a.beta1_power, a.beta2_power};
  *a.scalars = update_scalars(optimizer_of(*a.table), now.lr, now.beta1_power, now.beta2_power);
}

struct ClearCountsArgs {
  UpdateCounts* counts;
};

EMB_KERNEL(clear_update_counts, ClearCountsArgs) {
  if (grid_thread() == 0) *a.counts = UpdateCounts{0, 0, 0, 0, 0xFFFFFFFFFFFFFFFFull};
}

struct ResolveRowsArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint8_t* status;  // at forward
  const uint32_t* rows;   // at forward
  uint32_t* targets;      // may be `rows`
  uint32_t* is_bad;       // cleared
  UpdateCounts* counts;
};

// Where the row of each key is now.
EMB_KERNEL(resolve_rows, ResolveRowsArgs) {
  const Tile<kWarp> warp = Tile<kWarp>::here();
  const IndexTile tile = IndexTile::here();
  const TableView& t = *a.table;
  const uint64_t n = *a.n_unique;
  uint64_t n_wanted = 0, n_dropped = 0, n_stale = 0;
  for (uint64_t at = warp.number() * kWarp; at < n; at += Tile<kWarp>::count() * kWarp) {
    const uint64_t u = at + warp.lane();
    const bool had = u < n && had_row(a.status[u]);
    const uint64_t key = had ? a.keys[u] : 0;
    const uint32_t row = had ? a.rows[u] : kNoRow;
    const uint32_t target = find_rows_anew(tile, t, had && !is_row_of(t, row, key), key, row);
    n_wanted += n_bits(warp.ballot(target != kNoRow));
    n_stale += n_bits(warp.ballot(had && target == kNoRow));
    n_dropped += n_bits(warp.ballot(u < n && !had));
    if (u >= n) continue;
    a.targets[u] = target;
    a.is_bad[u] = 0;
  }
  if (warp.lane() != 0) return;
  if (n_wanted != 0) fetch_add(&a.counts->n_wanted, n_wanted);
  if (n_dropped != 0) fetch_add(&a.counts->n_dropped, n_dropped);
  if (n_stale != 0) fetch_add(&a.counts->n_stale, n_stale);
}

struct UpdateRowsArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint32_t* targets;
  const uint32_t* is_bad;
  const UpdateCounts* counts;
  uint64_t on_nonfinite;
  const float* base;  // of gradients, as in gradients.cu
  const float* const* pointers;
  const float* weights;
  const uint32_t* order;
  const uint32_t* starts;
  const float* sums;
  const UpdateScalars* scalars;
  uint64_t t;
  uint64_t step;   // relative
  const Now* now;  // of a captured graph, in place of both; or null
  uint64_t lanes_shift;
};

EMB_DEVICE Update update_of(const UpdateRowsArgs& a) {
  const uint64_t t = a.now != nullptr ? a.now->t : a.t;
  const uint64_t step = a.now != nullptr ? a.now->step : a.step;
  return Update{*a.table, optimizer_of(*a.table), *a.scalars, static_cast<uint32_t>(t), static_cast<uint32_t>(step)};
}

// Whether nothing is to be changed, because a sum was not finite.
EMB_DEVICE bool is_refused(const UpdateRowsArgs& a) {
  return static_cast<OnNonfinite>(a.on_nonfinite) == OnNonfinite::kRaise && a.counts->n_nonfinite != 0;
}

EMB_DEVICE bool is_updated(const UpdateRowsArgs& a, uint64_t u) {
  const bool is_skipped = static_cast<OnNonfinite>(a.on_nonfinite) == OnNonfinite::kSkip && a.is_bad[u] != 0;
  return a.targets[u] != kNoRow && !is_skipped;
}

EMB_DEVICE RowToUpdate row_to_update(const UpdateRowsArgs& a, uint64_t u) {
  const GradientView grads = {a.base, a.pointers, a.weights, a.table->dim};
  const Runs runs = {nullptr, a.order, a.starts, 0};
  return RowToUpdate{a.targets[u], a.keys[u], sum_of_run(grads, runs, a.sums, u)};
}

// For optimizers without sums along the row.
EMB_KERNEL(update_rows, UpdateRowsArgs) {
  if (is_refused(a)) return;
  const Update update = update_of(a);
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t u = walk.first; u < *a.n_unique; u += walk.stride) {
    if (!is_updated(a, u)) continue;
    const RowToUpdate row = row_to_update(a, u);
    for (uint64_t column = walk.column; column < update.table.dim; column += walk.columns)
      update_quad(update, row, static_cast<uint32_t>(column), 1.0f);
    if (walk.column == 0) note_update(update.table, row.row, update.step);
  }
}

// For the others; lanes_shift is not read.
EMB_KERNEL(update_rows_by_sums, UpdateRowsArgs) {
  if (is_refused(a)) return;
  const Update update = update_of(a);
  const RowTile tile = RowTile::here();
  for (uint64_t u = tile.number(); u < *a.n_unique; u += RowTile::count()) {
    if (!is_updated(a, u)) continue;
    const RowToUpdate row = row_to_update(a, u);
    update_by_sums(tile, update, row);
    if (tile.lane() == 0) note_update(update.table, row.row, update.step);
  }
}

struct SettleUpdateArgs {
  const TableView* table;
  const UpdateCounts* counts;
  uint64_t on_nonfinite;
  const uint64_t* keys;
  const uint32_t* inverse;
};

EMB_KERNEL(settle_update, SettleUpdateArgs) {
  if (grid_thread() != 0) return;
  const OnNonfinite on_nonfinite = static_cast<OnNonfinite>(a.on_nonfinite);
  Counters& c = *a.table->counters;
  if (on_nonfinite == OnNonfinite::kRaise && a.counts->n_nonfinite != 0) {
    ++c.n_bad_calls;
    c.bad_key = a.keys[a.inverse[a.counts->first_bad]];
    return;
  }
  c.n_grads_dropped += a.counts->n_dropped;
  c.n_grads_stale += a.counts->n_stale;
  if (on_nonfinite == OnNonfinite::kSkip) c.n_nonfinite += a.counts->n_nonfinite;
}

struct LastPositionsArgs {
  const uint32_t* inverse;
  uint64_t n;
  uint32_t* last;  // (n_unique,) zeroed
};

// The last position of each key.
EMB_KERNEL(last_positions, LastPositionsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads())
    fetch_max(&a.last[a.inverse[i]], static_cast<uint32_t>(i));
}

struct AddValuesArgs {
  const TableView* table;
  const uint64_t* keys;
  const uint64_t* n_unique;
  const uint32_t* rows;  // kNoRow: to be born
  const float* values;   // (n, dim)
  const uint32_t* order;
  const uint32_t* starts;
  const float* sums;
  float* results;  // (n_unique, dim)
  uint64_t lanes_shift;
};

// Each key's row, or what it would be born with, and the sum of its values.
EMB_KERNEL(add_values, AddValuesArgs) {
  const TableView& t = *a.table;
  const GradientView values = {a.values, nullptr, nullptr, t.dim};
  const Runs runs = {nullptr, a.order, a.starts, 0};
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t u = walk.first; u < *a.n_unique; u += walk.stride) {
    const WeightedRow sum = sum_of_run(values, runs, a.sums, u);
    for (uint64_t at = walk.column; at < t.dim; at += walk.columns) {
      const uint32_t column = static_cast<uint32_t>(at);
      const uint32_t n = columns_at(t.dim, column);
      Quad result = present_quad(t, a.rows[u], a.keys[u], column);
      add_quad(&result, quad_at(sum, column, n));
      store_floats(a.results + u * t.dim + column, result, n);
    }
  }
}

struct CheckVectorsArgs {
  const float* base;
  const uint32_t* index;  // or null
  const uint64_t* n_unique;
  uint64_t dim;
  uint64_t* has_bad;  // set to 1 if a number is not finite
  uint64_t lanes_shift;
};

EMB_KERNEL(check_vectors, CheckVectorsArgs) {
  const QuadWalk walk = quad_walk(a.lanes_shift);
  bool is_finite = true;
  for (uint64_t u = walk.first; u < *a.n_unique; u += walk.stride) {
    const float* const vector = vector_of(a.base, a.index, u, a.dim);
    for (uint64_t column = walk.column; column < a.dim; column += walk.columns)
      is_finite &= is_finite_quad(load_floats(vector + column, columns_at(a.dim, static_cast<uint32_t>(column))));
  }
  if (!is_finite) store_relaxed(a.has_bad, uint64_t{1});
}

struct AssignRowsArgs {
  const TableView* table;
  const uint64_t* n_unique;
  const uint32_t* rows;  // kNoRow: left out
  const float* base;
  const uint32_t* index;  // or null
  uint64_t step;          // relative
  uint64_t lanes_shift;
};

EMB_KERNEL(assign_rows, AssignRowsArgs) {
  const TableView& t = *a.table;
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t u = walk.first; u < *a.n_unique; u += walk.stride) {
    const uint32_t row = a.rows[u];
    if (row == kNoRow) continue;
    const float* const vector = vector_of(a.base, a.index, u, t.dim);
    for (uint64_t at = walk.column; at < t.dim; at += walk.columns) {
      const uint32_t column = static_cast<uint32_t>(at);
      const uint32_t n = columns_at(t.dim, column);
      store_values(dtype_of(t), values_of(t, row), column, load_floats(vector + column, n), n);
    }
    if (walk.column == 0) note_update(t, row, static_cast<uint32_t>(a.step));
  }
}
