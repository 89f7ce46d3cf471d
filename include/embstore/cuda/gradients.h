// The gradient of each position of a batch, out of what the caller gave for its parts, and its sum over each key.
//
// 1. A run is the positions of one key, in batch order: order[starts[u] .. starts[u + 1]).
// 2. Sums follow the rule of core/reduce.h, from above: the blocks of 32 of a long run are added by many threads, then
//    the blocks of 32 of those, until 32 or fewer are left for the run's sum.
// 3. A run of one is not copied: its sum is the gradient itself. A longer one's is row starts[u] / 2 of `sums`, as no
// two
//    runs of two or more begin within the same two positions.
// 4. Partial sums of level k, of 32^k positions each, are kept for runs longer than that. Those of a run that begins at
// s
//    are rows 2 * (s / 32^k) and on: a run of m > 32^k positions has at most m / 32^k + 1 <= 2 * (m / 32^k) of them
//    (whole quotients), and the next run begins m / 32^k or more windows of 32^k further on. So no two runs share a
//    row.
#ifndef EMBSTORE_CUDA_GRADIENTS_H_
#define EMBSTORE_CUDA_GRADIENTS_H_

#include "../core/pooling.h"
#include "../core/reduce.h"
#include "arena.h"

namespace embstore::cuda {

// The gradient of each position: row i of `base`, or what pointers say, times a weight.
struct GradientView {
  const float* base;
  const float* const* pointers;  // (n,) or null
  const float* weights;          // (n,), or null: ones
  uint64_t dim;
};

struct Runs {
  const uint32_t* inverse;  // (n,)
  const uint32_t* order;    // (n,)
  const uint32_t* starts;   // (n_unique + 1,)
  uint64_t n;
};

// A row of floats that are to be multiplied by a weight; 1 changes none.
struct WeightedRow {
  const float* at;
  float weight;
};

EMB_DEVICE WeightedRow gradient_at(const GradientView& g, uint32_t position) {
  const float* const at = g.pointers != nullptr ? g.pointers[position] : g.base + position * g.dim;
  return WeightedRow{at, g.weights != nullptr ? g.weights[position] : 1.0f};
}

EMB_DEVICE Quad quad_at(const WeightedRow& row, uint32_t column, uint32_t n) {
  return scaled_quad(load_floats(row.at + column, n), row.weight);
}

EMB_DEVICE float column_at(const WeightedRow& row, uint32_t column) { return row.at[column] * row.weight; }

// ---- sums

EMB_CONST uint32_t kBlockShift = 5;
static_assert(1u << kBlockShift == kReduceBlock, "windows are found by shifts");

// Rows that are added left to right, at most kReduceBlock: gradients of positions, or partial sums that follow each
// other.
struct Addends {
  const uint32_t* positions;  // or null
  const float* partials;
  uint32_t n;
};

EMB_DEVICE Quad addend(const GradientView& g, const Addends& rows, uint32_t i, uint32_t column, uint32_t n) {
  if (rows.positions != nullptr) return quad_at(gradient_at(g, rows.positions[i]), column, n);
  return load_floats(rows.partials + i * g.dim + column, n);
}

// Rows are loaded a few at a time, so that their latencies overlap.
EMB_DEVICE Quad sum_addends(const GradientView& g, const Addends& rows, uint32_t column, uint32_t n) {
  constexpr uint32_t kAtOnce = 4;
  Quad sum = addend(g, rows, 0, column, n);
  uint32_t i = 1;
  for (; i + kAtOnce <= rows.n; i += kAtOnce) {
    Quad x[kAtOnce];
    for (uint32_t k = 0; k < kAtOnce; ++k) x[k] = addend(g, rows, i + k, column, n);
    for (uint32_t k = 0; k < kAtOnce; ++k) add_quad(&sum, x[k]);
  }
  for (; i < rows.n; ++i) add_quad(&sum, addend(g, rows, i, column, n));
  return sum;
}

// The row of the first partial sum of a level, of a run that begins at `start`; the levels follow each other.
EMB_DEVICE uint64_t partial_row(uint64_t n, uint32_t level, uint64_t start) {
  uint64_t before = 0;
  for (uint32_t below = 1; below < level; ++below) before += 2 * (n >> (kBlockShift * below));
  return before + 2 * (start >> (kBlockShift * level));
}

EMB_DEVICE uint64_t n_blocks_of(uint64_t n, uint32_t level) { return ((n - 1) >> (kBlockShift * level)) + 1; }

// Block `number` of a run's rows of the level below: positions below level 1.
EMB_DEVICE Addends addends_of(const GradientView& g, const Runs& runs, const float* partials, uint64_t start,
                              uint64_t n, uint32_t level, uint64_t number) {
  const uint32_t below = level - 1;
  const uint64_t first = number * kReduceBlock;
  const uint64_t left = n_blocks_of(n, below) - first;
  const uint32_t n_rows = left < kReduceBlock ? static_cast<uint32_t>(left) : kReduceBlock;
  if (below == 0) return Addends{runs.order + start + first, nullptr, n_rows};
  return Addends{nullptr, partials + (partial_row(runs.n, below, start) + first) * g.dim, n_rows};
}

// A block of 32^level positions of a run that is longer, which begins in a window of as many positions.
struct BlockOfRun {
  uint32_t unique;
  uint64_t start;  // of the run
  uint64_t n;      // of the run
  uint64_t number;
  bool is_some;
};

// In a window begin at most two such blocks: one of the run that its first position belongs to (which = 0), and the
// first of the run that its last position belongs to, if that is another one (which = 1). Runs between are shorter.
EMB_DEVICE BlockOfRun block_in_window(const Runs& runs, uint32_t level, uint64_t window, uint32_t which) {
  const uint32_t shift = kBlockShift * level;
  const uint64_t first = window << shift;
  const uint64_t end = first + (uint64_t{1} << shift);
  const uint64_t last = (end < runs.n ? end : runs.n) - 1;
  const uint32_t unique = runs.inverse[runs.order[which == 0 ? first : last]];
  const uint64_t start = runs.starts[unique];
  const uint64_t n = runs.starts[unique + 1] - start;
  const bool begins_within = start > first;
  const uint64_t number = begins_within ? 0 : (end - 1 - start) >> shift;  // from here up, of the run's blocks
  const bool is_its_turn = which == 0 || begins_within;
  return BlockOfRun{unique, start, n, number, is_its_turn && n > uint64_t{1} << shift && number << shift < n};
}

// Writes columns of a partial sum.
EMB_DEVICE void sum_block(const GradientView& g, const Runs& runs, float* partials, const BlockOfRun& block,
                          uint32_t level, uint32_t column) {
  const Addends rows = addends_of(g, runs, partials, block.start, block.n, level, block.number);
  const uint32_t n = columns_at(g.dim, column);
  float* const out = partials + (partial_row(runs.n, level, block.start) + block.number) * g.dim;
  store_floats(out + column, sum_addends(g, rows, column, n), n);
}

// Where the sum of a run lies, or, of a run of one, what it is.
EMB_DEVICE WeightedRow sum_of_run(const GradientView& g, const Runs& runs, const float* sums, uint64_t unique) {
  const uint64_t start = runs.starts[unique];
  if (runs.starts[unique + 1] - start == 1) return gradient_at(g, runs.order[start]);
  return WeightedRow{sums + start / 2 * g.dim, 1.0f};
}

// Of the keys of a batch whose gradients are given; cleared by prepare_update.
struct UpdateCounts {
  uint64_t n_wanted;     // with a row
  uint64_t n_dropped;    // without one at forward
  uint64_t n_stale;      // whose row is gone
  uint64_t n_nonfinite;  // of n_wanted, whose sum is not finite
  uint64_t first_bad;    // the least first position of those; all ones without any
};

EMB_DEVICE void note_bad(UpdateCounts* counts, uint32_t* is_bad, uint32_t position) {
  if (exchange(is_bad, 1u) != 0) return;  // by another thread of the key
  fetch_add(&counts->n_nonfinite, uint64_t{1});
  fetch_min(&counts->first_bad, uint64_t{position});
}

// Columns of the sum of a run, which are written unless it is a run of one.
EMB_DEVICE Quad sum_run(const GradientView& g, const Runs& runs, const float* partials, float* sums, uint64_t unique,
                        uint32_t column) {
  const uint64_t start = runs.starts[unique];
  const uint64_t n_rows = runs.starts[unique + 1] - start;
  const uint32_t n = columns_at(g.dim, column);
  const Addends rows = addends_of(g, runs, partials, start, n_rows, block_depth(n_rows) + 1, 0);
  const Quad sum = sum_addends(g, rows, column, n);
  if (n_rows > 1) store_floats(sums + start / 2 * g.dim + column, sum, n);
  return sum;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_GRADIENTS_H_
