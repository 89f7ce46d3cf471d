// The two fixed orders of summation; they make every sum the same bits on every engine and thread count.
//
// 1. Duplicates: blocks of 32 added left to right, block sums reduced by the same rule. Three walks of that one order:
//    BlockSum, row by row; ColumnSums, the same for a few columns in variables; block_depth, for who adds blocks apart.
// 2. Along a row: 16 partial sums, column j into partial j mod 16, then a balanced tree.
#ifndef EMBSTORE_CORE_REDUCE_H_
#define EMBSTORE_CORE_REDUCE_H_

#include "portable.h"

namespace embstore {

EMB_CONST uint32_t kReduceBlock = 32;
EMB_CONST uint32_t kReduceLevels = 13;  // 32^13 > 2^64
EMB_CONST uint32_t kRowPartials = 16;

EMB_FN float fold_partials(float* p) {
  for (uint32_t half = kRowPartials / 2; half > 0; half /= 2)
    for (uint32_t i = 0; i < half; ++i) p[i] = p[i] + p[i + half];
  return p[0];
}

// A partial sum of squares and one column more.
EMB_FN float plus_square(float partial, float x) { return partial + x * x; }

EMB_FN float row_sum_of_squares(const float* x, uint32_t dim) {
  float p[kRowPartials] = {0};
  uint32_t j = 0;
  for (; j + kRowPartials <= dim; j += kRowPartials)
    for (uint32_t i = 0; i < kRowPartials; ++i) p[i] = plus_square(p[i], x[j + i]);
  for (uint32_t i = 0; j + i < dim; ++i) p[i] = plus_square(p[i], x[j + i]);
  return fold_partials(p);
}

EMB_FN float row_norm(const float* x, uint32_t dim) { return square_root(row_sum_of_squares(x, dim)); }

EMB_FN void add_row(float* sum, const float* x, uint32_t dim) {
  for (uint32_t j = 0; j < dim; ++j) sum[j] = sum[j] + x[j];
}

EMB_FN void copy_row(float* to, const float* x, uint32_t dim) {
  for (uint32_t j = 0; j < dim; ++j) to[j] = x[j];
}

// Sums rows in the order of rule 1: block_sum_add() for each row, then block_sum_finish(), which returns the row that
// holds the sum. `levels` holds kReduceLevels rows of dim floats; level l is the open block of sums of 32^l rows.
struct BlockSum {
  float* levels;
  uint32_t dim;
  uint64_t n;
};

EMB_FN float* block_level(const BlockSum& s, uint32_t level) { return s.levels + static_cast<uint64_t>(level) * s.dim; }

// Row number `index` of a level: the first of its block starts the block's sum.
EMB_FN void block_put(const BlockSum& s, uint32_t level, uint64_t index, const float* row) {
  if (index % kReduceBlock == 0)
    copy_row(block_level(s, level), row, s.dim);
  else
    add_row(block_level(s, level), row, s.dim);
}

EMB_FN void block_sum_add(BlockSum& s, const float* row) {
  block_put(s, 0, s.n, row);
  ++s.n;
  uint64_t done = s.n;
  for (uint32_t level = 0; done % kReduceBlock == 0; ++level) {  // a full block becomes one row of the next level
    done /= kReduceBlock;
    block_put(s, level + 1, done - 1, block_level(s, level));
  }
}

EMB_FN float* block_sum_finish(const BlockSum& s) {
  uint64_t count = s.n;  // rows of the level
  uint32_t level = 0;
  for (; count > kReduceBlock; ++level) {
    const uint64_t full = count / kReduceBlock;
    const bool is_open = count % kReduceBlock != 0;
    if (is_open) block_put(s, level + 1, full, block_level(s, level));
    count = full + is_open;
  }
  return block_level(s, level);
}

// Rule 1 for kColumns columns, of fewer than 2^35 rows; at[l] is the open block of sums of 32^l rows.
EMB_CONST uint32_t kColumnLevels = 7;

template <uint32_t kColumns>
struct ColumnSums {
  float at[kColumnLevels][kColumns];
};

template <uint32_t kColumns>
EMB_FN void column_put(float* level, uint64_t index, const float* x) {
  for (uint32_t j = 0; j < kColumns; ++j) level[j] = index % kReduceBlock == 0 ? x[j] : level[j] + x[j];
}

// Row number `index`; the last one closes all blocks, and the sum is in the uppermost level.
template <uint32_t kColumns>
EMB_FN void column_sums_add(ColumnSums<kColumns>* s, uint64_t index, const float* x, bool is_last) {
  column_put<kColumns>(s->at[0], index, x);
  EMB_ROLLED
  for (uint32_t level = 1; level < kColumnLevels; ++level) {
    if (!is_last && index % kReduceBlock != kReduceBlock - 1) return;
    index /= kReduceBlock;
    column_put<kColumns>(s->at[level], index, s->at[level - 1]);
  }
}

// Rule 1 from above: the sum of n >= 1 rows is that of their blocks of 32^depth, added left to right; a block's is that
// of the blocks of 32^(depth - 1) within it, and so on.
EMB_FN uint32_t block_depth(uint64_t n) {
  uint32_t depth = 0;
  for (uint64_t last = n - 1; last >= kReduceBlock; last /= kReduceBlock) ++depth;
  return depth;
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_REDUCE_H_
