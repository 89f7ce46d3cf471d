// Which rows go: a predicate over age, frequency and norm in postfix order, and the order of victims.
#ifndef EMBSTORE_CORE_EVICTION_H_
#define EMBSTORE_CORE_EVICTION_H_

#include "portable.h"
#include "types.h"

namespace embstore {

enum class PredicateOp : int32_t { kStep = 0, kL2 = 1, kFreq = 2, kAnd = 3, kOr = 4 };

EMB_CONST uint32_t kMaxPredicates = 32;
EMB_CONST int64_t kMaxStep = 0x7FFFFFFFFFFFFFFF;

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

EMB_FN bool is_old_enough(const Predicate& p, int64_t age) {
  return p.op == PredicateOp::kStep ? age > p.steps : age >= p.steps;
}

// The truth of a predicate that joins no others.
EMB_FN bool is_true(const Predicate& p, const RowFacts& row) {
  if (p.op == PredicateOp::kL2 && !(row.norm < p.threshold)) return false;
  if (p.op == PredicateOp::kFreq && row.freq >= p.min_freq) return false;
  return is_old_enough(p, row.age);
}

// Truth values of 64 rows at once, a bit each: truths_of(i) gives those of predicate i, which joins no others.
template <class TruthsOf>
EMB_FN uint64_t evaluate(const Predicate* program, uint32_t n, const TruthsOf& truths_of) {
  uint64_t stack[kMaxPredicates];
  uint32_t depth = 0;
  stack[0] = 0;
  for (uint32_t i = 0; i < n; ++i) {
    if (program[i].op == PredicateOp::kAnd) {
      --depth;
      stack[depth - 1] &= stack[depth];
    } else if (program[i].op == PredicateOp::kOr) {
      --depth;
      stack[depth - 1] |= stack[depth];
    } else {
      stack[depth++] = truths_of(i);
    }
  }
  return stack[0];
}

// The same of one row. Truths that wait to be joined are bits of a word, the latest the lowest.
EMB_FN bool is_evictable(const Predicate* program, uint32_t n, const RowFacts& row) {
  uint32_t truths = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t latest = truths & 1u;
    if (program[i].op == PredicateOp::kAnd)
      truths = truths >> 1 & (latest | ~1u);
    else if (program[i].op == PredicateOp::kOr)
      truths = truths >> 1 | latest;
    else
      truths = truths << 1 | static_cast<uint32_t>(is_true(program[i], row));
  }
  return (truths & 1u) != 0;
}

// What a predicate that joins no others asks of a row's record; its norm is another matter.
struct RecordTest {
  bool is_possible;
  bool asks_norm;
  uint32_t most_step;  // relative to step_base
  uint32_t most_freq;
};

// An older row is never too young: the greatest step that is old enough is found bit by bit.
EMB_FN RecordTest record_test(const Predicate& p, int64_t step, int64_t step_base) {
  const bool asks_freq = p.op == PredicateOp::kFreq;
  const bool is_possible = is_old_enough(p, age_of(step, step_base)) && !(asks_freq && p.min_freq == 0);
  uint32_t most_step = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    const int64_t relative = most_step | bit;
    if (relative <= kMaxStep - step_base && is_old_enough(p, age_of(step, step_base + relative))) most_step |= bit;
  }
  return RecordTest{is_possible, p.op == PredicateOp::kL2, most_step, asks_freq ? p.min_freq - 1 : 0xFFFFFFFFu};
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
