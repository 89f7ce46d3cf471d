// What a bucket, a cell's row word and a row's meta record are, in every engine.
//
// 1. The state of a cell stands in its row word, never in its key: all 2^64 keys are legal.
// 2. A zeroed bucket is an empty one.
// 3. Steps are kept as 32 bits relative to the table's step_base.
#ifndef EMBSTORE_CORE_TYPES_H_
#define EMBSTORE_CORE_TYPES_H_

#include "portable.h"

namespace embstore {

enum class Dtype : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2 };

EMB_FN uint32_t size_of(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

// Row words: 0 empty, 1 tombstone, 2 busy, 3 + row id, or 11 in the top bits: a candidate (12-bit count, 18-bit epoch).
EMB_CONST uint32_t kWordEmpty = 0;
EMB_CONST uint32_t kWordTombstone = 1;
EMB_CONST uint32_t kWordFirstRow = 3;
EMB_CONST uint32_t kWordFirstCandidate = 0xC0000000u;
EMB_CONST uint32_t kMaxRows = kWordFirstCandidate - kWordFirstRow;
EMB_CONST uint32_t kNoRow = 0xFFFFFFFFu;
EMB_CONST uint32_t kEpochBits = 18;
EMB_CONST uint32_t kEpochMask = (1u << kEpochBits) - 1;
EMB_CONST uint32_t kMaxMinCount = 4095;

EMB_FN bool is_row_word(uint32_t word) { return word >= kWordFirstRow && word < kWordFirstCandidate; }
EMB_FN bool is_candidate_word(uint32_t word) { return word >= kWordFirstCandidate; }
EMB_FN uint32_t word_of_row(uint32_t row) { return row + kWordFirstRow; }
EMB_FN uint32_t row_of_word(uint32_t word) { return word - kWordFirstRow; }
EMB_FN uint32_t word_of_candidate(uint32_t count, uint64_t epoch) {
  return kWordFirstCandidate | (count << kEpochBits) | static_cast<uint32_t>(epoch & kEpochMask);
}
EMB_FN uint32_t candidate_count(uint32_t word) { return (word >> kEpochBits) & 0xFFFu; }

// The whole epoch of a candidate: the greatest that is not beyond `latest` and agrees in its low 18 bits.
EMB_FN int64_t candidate_epoch(uint32_t word, int64_t latest) {
  const uint64_t back = (static_cast<uint64_t>(latest) - (word & kEpochMask)) & kEpochMask;
  return latest - static_cast<int64_t>(back);
}

struct Meta {  // one row's record; four to a cache line
  uint64_t key;
  uint32_t step;  // relative to step_base
  uint32_t freq;
};
static_assert(sizeof(Meta) == 16, "four records to a cache line");

EMB_FN uint32_t saturating_add(uint32_t a, uint32_t b) { return a + b < a ? 0xFFFFFFFFu : a + b; }

}  // namespace embstore

#endif  // EMBSTORE_CORE_TYPES_H_
