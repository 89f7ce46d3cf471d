// Training and assigning: which rows a batch's keys have now, and what the gradients, or values, make of them.
//
// 1. Rules are core's, column by column: a quad is a row of four columns to them. What a quad has beyond the row's last
//    column is computed from zeros and stored nowhere.
// 2. A row belongs to the threads of one key, for the launch; keys of a batch are distinct.
// 3. Optimizers without sums along the row take a row in one pass, by threads that never meet (update_quad); the others
//    by a tile whose eight lanes hold two of the sixteen partial sums each (RowSums).
#ifndef EMBSTORE_CUDA_UPDATE_H_
#define EMBSTORE_CUDA_UPDATE_H_

#include "arena.h"
#include "gradients.h"
#include "index.h"
#include "insert.h"

namespace embstore::cuda {

enum class OnNonfinite : uint64_t { kRaise = 0, kSkip = 1, kAllow = 2 };

// ---- which rows

EMB_DEVICE bool had_row(uint8_t status) { return status == kFound || status == kInserted; }

EMB_DEVICE bool is_row_of(const TableView& t, uint32_t row, uint64_t key) {
  return row < t.counters->n_ids && is_live(t, row) && meta_of(t, row)->key == key;
}

// The rows of the keys of a tile's lanes that `is_open`; the others get their `row` back.
EMB_DEVICE uint32_t find_rows_anew(const IndexTile& tile, const TableView& t, bool is_open, uint64_t key,
                                   uint32_t row) {
  for (uint32_t open = tile.ballot(is_open); open != 0; open &= open - 1) {
    const uint32_t lane = first_bit(open);
    const uint32_t word = find_cell(tile, t, tile.shfl(key, lane)).word;
    if (tile.lane() == lane) row = is_row_word(word) ? row_of_word(word) : kNoRow;
  }
  return row;
}

// ---- new values

struct Update {
  const TableView& table;
  Optimizer optimizer;
  UpdateScalars scalars;
  uint32_t t;     // training steps
  uint32_t step;  // relative to step_base
};

struct RowToUpdate {
  uint32_t row;
  uint64_t key;
  WeightedRow gradient;
};

// Values of a row that was computed on, stored as the table rounds them.
EMB_DEVICE void store_trained(const Update& u, const RowToUpdate& r, uint32_t column, const Quad& w, uint32_t n) {
  const TableView& t = u.table;
  const Dtype dtype = dtype_of(t);
  char* const values = values_of(t, r.row);
  if (dtype == Dtype::kF32 || t.is_stochastic == 0) return store_values(dtype, values, column, w, n);
  const Words4 words = words_of(t.stream, r.key, Purpose::kRounding, column / 4, u.t);
  Halves halves;
  for (uint32_t i = 0; i < 4; ++i) halves.x[i] = narrow_stochastic(dtype, w.x[i], uniform_of(words.x[i]));
  store_halves(reinterpret_cast<uint16_t*>(values) + column, halves, n);
}

// What clips a gradient and decays weights, but for the norm, whose ratio is given.
EMB_DEVICE float conditioned(const Update& u, float g, float w, float ratio) {
  const Optimizer& opt = u.optimizer;
  if (opt.clip_value > 0.0f) g = clip_to_value(g, opt.clip_value);
  g = g * ratio;
  return has_coupled_decay(opt) ? plus_decay(g, u.scalars.decay, w) : g;
}

EMB_DEVICE Quad conditioned_quad(const Update& u, const Quad& g, const Quad& w, float ratio) {
  Quad out;
  for (uint32_t i = 0; i < 4; ++i) out.x[i] = conditioned(u, g.x[i], w.x[i], ratio);
  return out;
}

// Columns of a row, by an optimizer whose rule is the same for each.
EMB_DEVICE void update_quad(const Update& u, const RowToUpdate& r, uint32_t column, float ratio) {
  constexpr uint32_t kMaxSlots = 2;  // of a column
  const TableView& t = u.table;
  const uint32_t n = columns_at(t.dim, column);
  float* const slots = slots_of(t, r.row) + column;
  Quad w = load_values(dtype_of(t), values_of(t, r.row), column, n);
  const Quad g = conditioned_quad(u, quad_at(r.gradient, column, n), w, ratio);
  float s[kMaxSlots * 4];
  for (uint32_t k = 0; k < kMaxSlots; ++k) {
    const Quad x = (k + 1) * t.dim <= t.n_slots ? load_floats(slots + k * t.dim, n) : Quad{{0.0f, 0.0f, 0.0f, 0.0f}};
    for (uint32_t i = 0; i < 4; ++i) s[4 * k + i] = x.x[i];
  }
  update_columns(u.optimizer, u.scalars, w.x, s, g.x, 4);
  for (uint32_t k = 0; k < kMaxSlots; ++k)
    if ((k + 1) * t.dim <= t.n_slots)
      store_floats(slots + k * t.dim, Quad{{s[4 * k], s[4 * k + 1], s[4 * k + 2], s[4 * k + 3]}}, n);
  store_trained(u, r, column, w, n);
}

EMB_DEVICE void update_rowwise_quad(const Update& u, const RowToUpdate& r, uint32_t column, float ratio, float rate) {
  const TableView& t = u.table;
  const uint32_t n = columns_at(t.dim, column);
  Quad w = load_values(dtype_of(t), values_of(t, r.row), column, n);
  const Quad g = conditioned_quad(u, quad_at(r.gradient, column, n), w, ratio);
  descend(w.x, g.x, rate, 4);
  store_trained(u, r, column, w, n);
}

// ---- sums along a row

using RowTile = Tile<8>;

// Two neighbouring partial sums of squares; the tile's sixteen are folded as core's fold_partials does: halves meet
// across lanes, the lower half's partner 4, 2 and 1 lanes further on, and at last the two of lane 0 (of every lane, as
// sums are the same either way round).
struct RowSums {
  float low;
  float high;
};

EMB_DEVICE float fold_sums(const RowTile& tile, RowSums p) {
  for (uint32_t by = 4; by > 0; by /= 2) {
    p.low = p.low + tile.shfl_xor(p.low, by);
    p.high = p.high + tile.shfl_xor(p.high, by);
  }
  return p.low + p.high;
}

EMB_DEVICE float value_at(const TableView& t, uint32_t row, uint32_t column) {
  const char* const values = values_of(t, row);
  if (dtype_of(t) == Dtype::kF32) return reinterpret_cast<const float*>(values)[column];
  return widen(dtype_of(t), reinterpret_cast<const uint16_t*>(values)[column]);
}

// The sum of squares of the gradient, clipped by value alone, or conditioned wholly.
EMB_DEVICE float sum_of_squares(const RowTile& tile, const Update& u, const RowToUpdate& r, float ratio,
                                bool is_decayed) {
  const TableView& t = u.table;
  const uint32_t dim = static_cast<uint32_t>(t.dim);
  const float clip = u.optimizer.clip_value;
  const auto column_of = [&](uint32_t column) {
    const float g = column_at(r.gradient, column);
    if (!is_decayed) return clip > 0.0f ? clip_to_value(g, clip) : g;
    return conditioned(u, g, has_coupled_decay(u.optimizer) ? value_at(t, r.row, column) : 0.0f, ratio);
  };
  RowSums p = {0.0f, 0.0f};
  for (uint32_t column = 2 * tile.lane(); column < dim; column += kRowPartials) {
    p.low = plus_square(p.low, column_of(column));
    if (column + 1 < dim) p.high = plus_square(p.high, column_of(column + 1));
  }
  return fold_sums(tile, p);
}

// All lanes of a tile.
EMB_DEVICE void update_by_sums(const RowTile& tile, const Update& u, const RowToUpdate& r) {
  const TableView& t = u.table;
  const Optimizer& opt = u.optimizer;
  const uint32_t dim = static_cast<uint32_t>(t.dim);
  float ratio = 1.0f, rate = 0.0f;
  if (opt.clip_norm > 0.0f) ratio = norm_ratio(opt, square_root(sum_of_squares(tile, u, r, 1.0f, false)));
  const bool is_rowwise = opt.kind == OptimizerKind::kRowWiseAdagrad;
  if (is_rowwise) {
    float* const slot = slots_of(t, r.row);
    const float accumulated = rowwise_accumulated(*slot, sum_of_squares(tile, u, r, ratio, true), dim);
    rate = rowwise_rate(u.scalars, accumulated);
    tile.sync();  // all have read the slot
    if (tile.lane() == 0) *slot = accumulated;
  }
  tile.sync();  // and the row
  for (uint32_t column = 4 * tile.lane(); column < dim; column += 32) {
    if (is_rowwise)
      update_rowwise_quad(u, r, column, ratio, rate);
    else
      update_quad(u, r, column, ratio);
  }
}

// ---- what goes with a write

// By one thread.
EMB_DEVICE void note_update(const TableView& t, uint32_t row, uint32_t step) {
  Meta* const meta = meta_of(t, row);
  if (meta->step < step) meta->step = step;
  note_written(t, row);
}

// ---- assigning

// What a key's row shall hold: row number index[unique] of `base`, or unique itself.
EMB_DEVICE const float* vector_of(const float* base, const uint32_t* index, uint64_t unique, uint64_t dim) {
  return base + (index != nullptr ? index[unique] : unique) * dim;
}

// Columns of a row, or of what an absent key would be born with, widened.
EMB_DEVICE Quad present_quad(const TableView& t, uint32_t row, uint64_t key, uint32_t column) {
  const uint32_t n = columns_at(t.dim, column);
  if (row != kNoRow) return load_values(dtype_of(t), values_of(t, row), column, n);
  return rounded_quad(dtype_of(t), initial_quad(t, key, column));
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_UPDATE_H_
