// Where the gradient of each position lies, and the sums of those of each key.
#include "embstore/cuda/gradients.h"

using namespace embstore;
using namespace embstore::cuda;

struct PointRowsArgs {
  const float* rows;  // (n, dim)
  uint64_t n;
  uint64_t dim;
  const float** pointers;  // (n,)
  float* weights;          // (n,) or null
};

// A part of rows: one for each of its positions.
EMB_KERNEL(point_rows, PointRowsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    a.pointers[i] = a.rows + i * a.dim;
    if (a.weights != nullptr) a.weights[i] = 1.0f;
  }
}

struct PointBagsArgs {
  const float* rows;       // (n_bags, dim)
  const int64_t* offsets;  // (n_bags + 1,)
  uint64_t n_bags;
  uint64_t dim;
  const float* given;      // (n,) weights, or null: ones
  const float** pointers;  // (n,)
  float* weights;          // (n,) or null
};

// A part of bags: the positions of a bag share its row.
EMB_KERNEL(point_bags, PointBagsArgs) {
  const Tile<8> tile = Tile<8>::here();
  for (uint64_t bag = tile.number(); bag < a.n_bags; bag += Tile<8>::count()) {
    for (int64_t i = a.offsets[bag] + tile.lane(); i < a.offsets[bag + 1]; i += 8) {
      a.pointers[i] = a.rows + bag * a.dim;
      if (a.weights != nullptr) a.weights[i] = a.given != nullptr ? a.given[i] : 1.0f;
    }
  }
}

struct DivideBagsArgs {
  const float* rows;       // (n_bags, dim)
  const int64_t* offsets;  // (n_bags + 1,)
  uint64_t n_bags;
  uint64_t dim;
  uint64_t pool_mode;
  float* out;  // (n_bags, dim)
  uint64_t lanes_shift;
};

EMB_KERNEL(divide_bags, DivideBagsArgs) {
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t bag = walk.first; bag < a.n_bags; bag += walk.stride) {
    const uint64_t size = static_cast<uint64_t>(a.offsets[bag + 1] - a.offsets[bag]);
    const float divisor = pool_divisor(static_cast<PoolMode>(a.pool_mode), size);
    for (uint64_t column = walk.column; size > 0 && column < a.dim; column += walk.columns) {
      const uint32_t n = columns_at(a.dim, column);
      const Quad x = load_floats(a.rows + bag * a.dim + column, n);
      store_floats(a.out + bag * a.dim + column, divided_quad(x, divisor), n);
    }
  }
}

struct MarkRunsArgs {
  const uint32_t* inverse;
  const uint32_t* order;
  uint64_t n;
  uint32_t* starts;  // (n_unique + 1,)
};

// The first position of each run within the order.
EMB_KERNEL(mark_runs, MarkRunsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    const uint32_t unique = a.inverse[a.order[i]];
    if (i == 0 || a.inverse[a.order[i - 1]] != unique) a.starts[unique] = static_cast<uint32_t>(i);
    if (i + 1 == a.n) a.starts[unique + 1] = static_cast<uint32_t>(a.n);
  }
}

struct SumBlocksArgs {
  const float* base;
  const float* const* pointers;
  const float* weights;
  uint64_t dim;
  const uint32_t* inverse;
  const uint32_t* order;
  const uint32_t* starts;
  uint64_t n;
  const uint32_t* targets;  // (n_unique,), or null: all are wanted
  uint64_t level;           // 1, then 2, ... while 32^level < n
  float* partials;          // of all levels
  uint64_t lanes_shift;
};

// The partial sums of one level.
EMB_KERNEL(sum_blocks, SumBlocksArgs) {
  const GradientView grads = {a.base, a.pointers, a.weights, a.dim};
  const Runs runs = {a.inverse, a.order, a.starts, a.n};
  const uint32_t level = static_cast<uint32_t>(a.level);
  const uint64_t n_windows = a.n == 0 ? 0 : n_blocks_of(a.n, level);
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t i = walk.first; i < 2 * n_windows; i += walk.stride) {
    const BlockOfRun block = block_in_window(runs, level, i / 2, i % 2);
    if (!block.is_some || (a.targets != nullptr && a.targets[block.unique] == kNoRow)) continue;
    for (uint64_t column = walk.column; column < a.dim; column += walk.columns)
      sum_block(grads, runs, a.partials, block, level, static_cast<uint32_t>(column));
  }
}

struct SumGradientsArgs {
  const float* base;
  const float* const* pointers;
  const float* weights;
  uint64_t dim;
  const uint32_t* inverse;
  const uint32_t* order;
  const uint32_t* starts;
  uint64_t n;
  const uint64_t* n_unique;
  const uint32_t* targets;  // (n_unique,), or null: all are wanted
  const float* partials;
  float* sums;           // (n / 2, dim)
  uint32_t* is_bad;      // (n_unique,) zeroed by resolve_rows; or null: sums may be anything
  UpdateCounts* counts;  // or null
  uint64_t lanes_shift;
};

// The sum of each run that is wanted, and which are not finite.
EMB_KERNEL(sum_gradients, SumGradientsArgs) {
  const GradientView grads = {a.base, a.pointers, a.weights, a.dim};
  const Runs runs = {a.inverse, a.order, a.starts, a.n};
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t u = walk.first; u < *a.n_unique; u += walk.stride) {
    if (a.targets != nullptr && a.targets[u] == kNoRow) continue;
    if (a.is_bad == nullptr && a.starts[u + 1] - a.starts[u] == 1) continue;
    bool is_finite = true;
    for (uint64_t column = walk.column; column < a.dim; column += walk.columns)
      is_finite &= is_finite_quad(sum_run(grads, runs, a.partials, a.sums, u, static_cast<uint32_t>(column)));
    if (!is_finite && a.is_bad != nullptr) note_bad(a.counts, &a.is_bad[u], a.order[a.starts[u]]);
  }
}
