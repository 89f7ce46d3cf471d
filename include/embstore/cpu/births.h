// Random numbers for many blocks of four columns at once, of one row or of many: the rules of core, laid out so that
// the compiler makes vectors of them.
//
// 1. Every number is a function of its key and column alone: how blocks are put together changes nothing.
// 2. As in kernels.h, all has internal linkage and includes core alone.
#ifndef EMBSTORE_CPU_BIRTHS_H_
#define EMBSTORE_CPU_BIRTHS_H_

#include "../core/initializer.h"

namespace embstore::cpu {

EMB_CONST uint32_t kBlockColumns = 4;
EMB_CONST uint32_t kBatchBlocks = 16;
EMB_CONST uint32_t kBatchColumns = kBatchBlocks * kBlockColumns;

#if defined(__AVX512DQ__)
using PhiloxCarrier = uint64_t;  // eight 64-bit products are one instruction
#else
using PhiloxCarrier = uint32_t;
#endif

// Blocks to be drawn and what was drawn; where fewer than kBatchBlocks are wanted, the rest are drawn for nobody.
struct BlockBatch {
  uint64_t key[kBatchBlocks];
  uint32_t block[kBatchBlocks];  // of the key's row
  uint32_t words[kBlockColumns][kBatchBlocks];
  float values[kBatchColumns];  // of block i from 4 * i on
};

// Puts blocks [block, end) of a row from place `at` on, as many as there is room for; returns end.
EMB_FN uint32_t batch_add(BlockBatch* b, uint32_t at, uint64_t key, uint32_t block, uint32_t row_blocks) {
  for (; at < kBatchBlocks && block < row_blocks; ++at, ++block) {
    b->key[at] = key;
    b->block[at] = block;
  }
  return block;
}

EMB_FN void draw_words(uint64_t stream, Purpose purpose, uint32_t last, BlockBatch* b) {
  for (uint32_t i = 0; i < kBatchBlocks; ++i) {
    const Words4 w = words_of<PhiloxCarrier>(stream, b->key[i], purpose, b->block[i], last);
    b->words[0][i] = w.x[0];
    b->words[1][i] = w.x[1];
    b->words[2][i] = w.x[2];
    b->words[3][i] = w.x[3];
  }
}

EMB_CONST uint32_t kFewBlocks = 4;  // one by one they are cheaper than a batch

// Uniform numbers in [0, 1) for the first n blocks.
EMB_FN void draw_uniforms(uint64_t stream, Purpose purpose, uint32_t last, uint32_t n, BlockBatch* b) {
  if (n < kFewBlocks) {
    for (uint32_t i = 0; i < n; ++i) {
      const Words4 w = words_of(stream, b->key[i], purpose, b->block[i], last);
      for (uint32_t lane = 0; lane < kBlockColumns; ++lane) b->values[kBlockColumns * i + lane] = uniform_of(w.x[lane]);
    }
    return;
  }
  draw_words(stream, purpose, last, b);
  for (uint32_t i = 0; i < kBatchBlocks; ++i)
    for (uint32_t lane = 0; lane < kBlockColumns; ++lane)
      b->values[kBlockColumns * i + lane] = uniform_of(b->words[lane][i]);
}

// Standard normal numbers.
EMB_FN void draw_normals(const Initializer& init, BlockBatch* b) {
  draw_words(init.stream, Purpose::kInitial, 0, b);
  float cos[2][kBatchBlocks];
  float sin[2][kBatchBlocks];
  for (uint32_t half = 0; half < 2; ++half)
    for (uint32_t i = 0; i < kBatchBlocks; ++i) {
      const CosSin pair = normal_pair(b->words[2 * half][i], b->words[2 * half + 1][i]);
      cos[half][i] = pair.cos;
      sin[half][i] = pair.sin;
    }
  for (uint32_t i = 0; i < kBatchBlocks; ++i) {
    b->values[kBlockColumns * i] = cos[0][i];
    b->values[kBlockColumns * i + 1] = sin[0][i];
    b->values[kBlockColumns * i + 2] = cos[1][i];
    b->values[kBlockColumns * i + 3] = sin[1][i];
  }
}

// One number in 22 needs another attempt.
EMB_FN void retry_truncated(const Initializer& init, BlockBatch* b) {
  uint32_t columns[kBatchColumns];
  uint32_t n = 0;
  for (uint32_t column = 0; column < kBatchColumns; ++column) {
    columns[n] = column;
    n += is_truncated(b->values[column]);
  }
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t at = columns[i] / kBlockColumns;
    b->values[columns[i]] = truncated_normal(init, b->key[at], b->block[at], columns[i] % kBlockColumns, 1);
  }
}

// The initial values of a batch's first n blocks.
EMB_FN void draw_values(const Initializer& init, uint32_t n, BlockBatch* b) {
  if (n < kFewBlocks || init.kind == InitKind::kConstant) {
    for (uint32_t i = 0; i < n; ++i) initial_block(init, b->key[i], b->block[i], b->values + kBlockColumns * i);
    return;
  }
  if (init.kind == InitKind::kUniform) {
    draw_uniforms(init.stream, Purpose::kInitial, 0, n, b);
    for (uint32_t column = 0; column < kBatchColumns; ++column)
      b->values[column] = uniform_value(init, b->values[column]);
    return;
  }
  draw_normals(init, b);
  if (init.kind == InitKind::kTruncatedNormal) retry_truncated(init, b);
  for (uint32_t column = 0; column < kBatchColumns; ++column) b->values[column] = normal_value(init, b->values[column]);
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_BIRTHS_H_
