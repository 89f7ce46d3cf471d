// Which rows of a table a predicate selects, 64 at a time. Compiled once for each instruction set (src/paths).
//
// 1. What the rows' records leave open, because it depends on their norms, is said to be open: a program of `and` and
//    `or` only grows with its predicates, so a row is certain if it holds with every norm too great, and impossible if
//    it does not with every norm small enough.
// 2. Words of 64 rows without a live one are passed over.
// 3. As in kernels.h, all has internal linkage and includes core alone.
#ifndef EMBSTORE_CPU_SELECT_H_
#define EMBSTORE_CPU_SELECT_H_

#include "../core/eviction.h"
#include "../core/reduce.h"
#include "../core/types.h"
#include "format.h"
#include "slab.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace embstore::cpu {

struct SelectContext {
  Slab meta;
  Slab values;
  const uint64_t* live;  // a bit for each row
  const Predicate* program;
  const RecordTest* tests;  // (n,)
  uint32_t n;
  bool needs_norm;
};

EMB_CONST uint64_t kWordRows = 64;  // they lie in one chunk of a slab

// Which of 64 records have at most this step and freq.
#if defined(__SSE2__)
EMB_FN uint64_t records_within(const Meta* meta, const RecordTest& test) {
  const __m128i sign = _mm_set1_epi32(INT32_MIN);  // compares are signed
  const __m128i most_step = _mm_xor_si128(_mm_set1_epi32(static_cast<int32_t>(test.most_step)), sign);
  const __m128i most_freq = _mm_xor_si128(_mm_set1_epi32(static_cast<int32_t>(test.most_freq)), sign);
  const __m128i* records = reinterpret_cast<const __m128i*>(meta);
  uint64_t beyond = 0;
  for (uint32_t i = 0; i < kWordRows; i += 4) {
    const __m128i first = _mm_unpackhi_epi64(_mm_load_si128(records + i), _mm_load_si128(records + i + 1));
    const __m128i second = _mm_unpackhi_epi64(_mm_load_si128(records + i + 2), _mm_load_si128(records + i + 3));
    const __m128 a = _mm_castsi128_ps(_mm_xor_si128(first, sign));
    const __m128 b = _mm_castsi128_ps(_mm_xor_si128(second, sign));
    const __m128i steps = _mm_castps_si128(_mm_shuffle_ps(a, b, 0x88));
    const __m128i freqs = _mm_castps_si128(_mm_shuffle_ps(a, b, 0xDD));
    const __m128i out = _mm_or_si128(_mm_cmpgt_epi32(steps, most_step), _mm_cmpgt_epi32(freqs, most_freq));
    beyond |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(out)))) << i;
  }
  return ~beyond;
}

// Which of 64 norms are less than the threshold.
EMB_FN uint64_t norms_below(const float* norms, float threshold) {
  const __m128 bound = _mm_set1_ps(threshold);
  uint64_t below = 0;
  for (uint32_t i = 0; i < kWordRows; i += 4)
    below |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(norms + i), bound))))
             << i;
  return below;
}
#else
EMB_FN uint64_t records_within(const Meta* meta, const RecordTest& test) {
  uint64_t within = 0;
  for (uint32_t i = 0; i < kWordRows; ++i)
    within |= static_cast<uint64_t>(meta[i].step <= test.most_step && meta[i].freq <= test.most_freq) << i;
  return within;
}

EMB_FN uint64_t norms_below(const float* norms, float threshold) {
  uint64_t below = 0;
  for (uint32_t i = 0; i < kWordRows; ++i) below |= static_cast<uint64_t>(norms[i] < threshold) << i;
  return below;
}
#endif

// What is left of a row's 16 partial sums of squares (core/reduce.h) before the last two halvings; four rows at a time
// make norms of that.
#if defined(__SSE2__)
using FoldedSquares = __m128;

EMB_FN __m128 squares(__m128 x) { return _mm_mul_ps(x, x); }

EMB_FN FoldedSquares folded_squares(const float* x, uint32_t dim) {
  constexpr uint32_t kLanes = 4;
  __m128 p[kRowPartials / kLanes] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
  uint32_t j = 0;
  for (; j + kRowPartials <= dim; j += kRowPartials)
    for (uint32_t i = 0; i < 4; ++i) p[i] = _mm_add_ps(p[i], squares(_mm_loadu_ps(x + j + kLanes * i)));
  if (j < dim) {
    float rest[kRowPartials] = {0};  // adding zero changes no sum of squares
    __builtin_memcpy(rest, x + j, (dim - j) * sizeof(float));
    for (uint32_t i = 0; i < 4; ++i) p[i] = _mm_add_ps(p[i], squares(_mm_loadu_ps(rest + kLanes * i)));
  }
  return _mm_add_ps(_mm_add_ps(p[0], p[2]), _mm_add_ps(p[1], p[3]));
}

EMB_FN void norms_of_four(FoldedSquares* rows, float* out) {
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  _mm_storeu_ps(out, _mm_sqrt_ps(_mm_add_ps(_mm_add_ps(rows[0], rows[2]), _mm_add_ps(rows[1], rows[3]))));
}
#else
using FoldedSquares = float;
EMB_FN FoldedSquares folded_squares(const float* x, uint32_t dim) { return row_sum_of_squares(x, dim); }
EMB_FN void norms_of_four(FoldedSquares* rows, float* out) {
  for (uint32_t i = 0; i < 4; ++i) out[i] = square_root(rows[i]);
}
#endif

// The program's truths for 64 rows; small_norms(threshold) are the rows whose norm is less.
template <class SmallNorms>
EMB_FN uint64_t rows_that_hold(const SelectContext& c, const Meta* meta, const SmallNorms& small_norms) {
  return evaluate(c.program, c.n, [&](uint32_t i) {
    const RecordTest& test = c.tests[i];
    if (!test.is_possible) return uint64_t{0};
    const uint64_t small = test.asks_norm ? small_norms(c.program[i].threshold) : ~uint64_t{0};
    return small != 0 ? small & records_within(meta, test) : 0;
  });
}

EMB_FN const Meta* records_of_word(const SelectContext& c, uint64_t word) {
  return reinterpret_cast<const Meta*>(slab_row(c.meta, static_cast<uint32_t>(word * kWordRows)));
}

// Words [first, first + n) of 64 rows: those selected for certain, and those that are if their norms are small enough.
EMB_FN void select_rows(const SelectContext& c, uint64_t first, uint64_t n, uint64_t* certain, uint64_t* open) {
  constexpr uint64_t kAheadBytes = 4096;
  for (uint64_t w = 0; w < n; ++w) {
    const uint64_t live = c.live[first + w];
    certain[w] = open[w] = 0;
    if (live == 0) continue;
    const Meta* const meta = records_of_word(c, first + w);
    for (uint64_t at = 0; at < kWordRows * sizeof(Meta); at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(meta) + kAheadBytes + at);
    certain[w] = rows_that_hold(c, meta, [](float) { return uint64_t{0}; }) & live;
    if (c.needs_norm) open[w] = rows_that_hold(c, meta, [](float) { return ~uint64_t{0}; }) & live & ~certain[w];
  }
}

// Norms of a word's rows whose bits are set, each at its bit's number.
EMB_FN void norms_of_word(const char* values, uint32_t stride, const RowFormat& f, uint64_t bits, float* scratch,
                          float* norms) {
  while (bits != 0) {
    FoldedSquares folded[4] = {};
    uint32_t at[4];
    float four[4];
    uint32_t n = 0;
    for (; n < 4 && bits != 0; bits &= bits - 1) {
      at[n] = static_cast<uint32_t>(__builtin_ctzll(bits));
      const void* const row = values + uint64_t{at[n]} * stride;
      if (f.dtype != Dtype::kF32) widen_row(row, f, scratch);
      folded[n++] = folded_squares(f.dtype != Dtype::kF32 ? scratch : static_cast<const float*>(row), f.dim);
    }
    norms_of_four(folded, four);
    for (uint32_t i = 0; i < n; ++i) norms[at[i]] = four[i];
  }
}

EMB_FN void select_by_norm(const SelectContext& c, const RowFormat& f, uint64_t first, uint64_t n, const uint64_t* open,
                           float* scratch, uint64_t* selected) {
  const auto values_of = [&](uint64_t w) { return slab_row(c.values, static_cast<uint32_t>((first + w) * kWordRows)); };
  for (uint64_t w = 0; w < n; ++w) {
    for (uint64_t bits = w + 1 < n ? open[w + 1] : 0; bits != 0; bits &= bits - 1)
      prefetch_row(values_of(w + 1) + static_cast<uint64_t>(__builtin_ctzll(bits)) * c.values.stride, value_bytes(f));
    if (open[w] == 0) continue;
    float norms[kWordRows] = {0};
    norms_of_word(values_of(w), c.values.stride, f, open[w], scratch, norms);
    const auto small_norms = [&](float threshold) { return norms_below(norms, threshold); };
    selected[w] |= rows_that_hold(c, records_of_word(c, first + w), small_norms) & open[w];
  }
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_SELECT_H_
