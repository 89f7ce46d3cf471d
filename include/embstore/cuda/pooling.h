// Bags of rows reduced to one; docs/semantics.md, section 8.
//
// 1. The threads of a bag take its quads in turn and never meet; the order of additions is core's rule 1.
// 2. Offsets are the caller's and have been checked: ascending, from 0 to the number of positions.
#ifndef EMBSTORE_CUDA_POOLING_H_
#define EMBSTORE_CUDA_POOLING_H_

#include "../core/pooling.h"
#include "../core/reduce.h"
#include "arena.h"

namespace embstore::cuda {

// The row of each position: rows[inverse[i]], or rows[i]; kNoRow is the default row.
struct PooledRows {
  const uint32_t* rows;
  const uint32_t* inverse;  // (n,) or null
  const float* weights;     // (n,) or null: ones
};

EMB_DEVICE Quad pooled_quad(const TableView& t, const PooledRows& p, uint64_t i, uint32_t column, uint32_t n) {
  const uint32_t row = p.rows[p.inverse != nullptr ? p.inverse[i] : i];
  const Quad q = row == kNoRow ? default_quad(t, column, n) : load_values(dtype_of(t), values_of(t, row), column, n);
  return p.weights != nullptr ? scaled_quad(q, p.weights[i]) : q;
}

// Rows are loaded a few at a time, so that their latencies overlap.
EMB_CONST uint32_t kRowsAtOnce = 4;

// Of one block, 1 .. kReduceBlock rows.
EMB_DEVICE Quad sum_rows(const TableView& t, const PooledRows& p, uint64_t first, uint64_t end, uint32_t column,
                         uint32_t n) {
  Quad sum = pooled_quad(t, p, first, column, n);
  uint64_t i = first + 1;
  for (; i + kRowsAtOnce <= end; i += kRowsAtOnce) {
    Quad x[kRowsAtOnce];
    for (uint32_t k = 0; k < kRowsAtOnce; ++k) x[k] = pooled_quad(t, p, i + k, column, n);
    for (uint32_t k = 0; k < kRowsAtOnce; ++k) add_quad(&sum, x[k]);
  }
  for (; i < end; ++i) add_quad(&sum, pooled_quad(t, p, i, column, n));
  return sum;
}

// Of 1 or more rows. The sums of blocks of a longer bag are rows of the levels above, which are seldom touched.
EMB_DEVICE Quad sum_bag(const TableView& t, const PooledRows& p, uint64_t first, uint64_t size, uint32_t column) {
  const uint32_t n = columns_at(t.dim, column);
  const uint64_t n_blocks = (size - 1) / kReduceBlock + 1;
  ColumnSums<4> sums;
  Quad sum;
  EMB_ROLLED
  for (uint64_t block = 0; block < n_blocks; ++block) {
    const uint64_t at = block * kReduceBlock;
    sum = sum_rows(t, p, first + at, first + (size - at < kReduceBlock ? size : at + kReduceBlock), column, n);
    if (n_blocks > 1) column_sums_add<4>(&sums, block, sum.x, block + 1 == n_blocks);
  }
  if (n_blocks == 1) return sum;
  for (uint32_t i = 0; i < 4; ++i) sum.x[i] = sums.at[kColumnLevels - 1][i];
  return sum;
}

EMB_DEVICE Quad pool_quad(const TableView& t, const PooledRows& p, uint64_t first, uint64_t size, PoolMode mode,
                          uint32_t column) {
  if (size == 0) return Quad{{0.0f, 0.0f, 0.0f, 0.0f}};
  return divided_quad(sum_bag(t, p, first, size, column), pool_divisor(mode, size));
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_POOLING_H_
