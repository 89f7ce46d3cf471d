// Which rows go: a predicate over age, frequency and norm in postfix order, and the order of victims.
#ifndef EMBSTORE_CORE_EVICTION_H_
#define EMBSTORE_CORE_EVICTION_H_

#include "portable.h"
#include "types.h"

namespace embstore {

enum class PredicateOp : int32_t { kStep = 0, kL2 = 1, kFreq = 2, kAnd = 3, kOr = 4 };

EMB_CONST uint32_t kMaxPredicates = 32;

struct Predicate {
  PredicateOp op;
  float threshold;
  uint32_t min_freq;
  int64_t steps;
};

struct RowFacts {
  int64_t age;
  uint32_t freq;
  float norm;  // NaN where no predicate asks for it
};

EMB_FN int64_t age_of(int64_t step, int64_t row_step) { return step > row_step ? step - row_step : 0; }

// The stack of truth values is the bits of one word, its top the lowest.
EMB_FN bool is_evictable(const Predicate* program, uint32_t n, const RowFacts& row) {
  uint32_t stack = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const Predicate& p = program[i];
    const uint32_t top = stack & 1u;
    switch (p.op) {
      case PredicateOp::kStep:
        stack = (stack << 1) | (row.age > p.steps);
        break;
      case PredicateOp::kL2:
        stack = (stack << 1) | (row.norm < p.threshold && row.age >= p.steps);
        break;
      case PredicateOp::kFreq:
        stack = (stack << 1) | (row.freq < p.min_freq && row.age >= p.steps);
        break;
      case PredicateOp::kAnd:
        stack = (stack >> 1) & (~1u | top);
        break;
      case PredicateOp::kOr:
        stack = (stack >> 1) | top;
        break;
    }
  }
  return (stack & 1u) != 0;
}

EMB_FN bool needs_norm(const Predicate* program, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i)
    if (program[i].op == PredicateOp::kL2) return true;
  return false;
}

// Victims go by (score, key), the least first; keys compare as signed integers.
struct Victim {
  int64_t score;
  int64_t key;
  uint32_t row;
};

EMB_FN bool is_before(const Victim& a, const Victim& b) {
  return a.score != b.score ? a.score < b.score : a.key < b.key;
}

// What shall remain of max_rows when a batch of n_new rows is about to come.
EMB_FN uint64_t rows_to_remain(uint64_t max_rows, uint64_t n_new) {
  const uint64_t target = max_rows / 20 * 19 + max_rows % 20 * 19 / 20;
  return target > n_new ? target - n_new : 0;
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_EVICTION_H_
