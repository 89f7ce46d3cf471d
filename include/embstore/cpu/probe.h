// Finding a key's cell: buckets of five exact keys, probed linearly. Compiled once for each instruction set
// (src/paths).
//
// 1. A key's home bucket is the high part of hash x n; a probe goes on to the next bucket while the one before is full
//    of cells that were ever used, and ends at an empty cell.
// 2. Readers that work beside a writer compare a bucket's control word before and after (shared.h).
// 3. Like all that the paths compile, this has internal linkage and includes core alone.
#ifndef EMBSTORE_CPU_PROBE_H_
#define EMBSTORE_CPU_PROBE_H_

#include "../core/hash.h"
#include "../core/types.h"
#include "shared.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace embstore::cpu {

EMB_CONST uint32_t kCells = 5;

struct alignas(64) Bucket {
  uint64_t key[kCells];
  uint32_t word[kCells];
  uint32_t control;
};
static_assert(sizeof(Bucket) == 64, "a bucket is one cache line");

struct Cell {  // where a key was found; bucket is null where it was not
  Bucket* bucket = nullptr;
  uint32_t slot = 0;
  uint32_t word = kWordEmpty;
};

// The buckets of an index: homes below `boundary` have moved to `to`, if there is one (index.h).
struct View {
  Bucket* from = nullptr;
  Bucket* to = nullptr;
  uint64_t n_from = 0;
  uint64_t n_to = 0;
  uint64_t boundary = 0;
};

EMB_FN Bucket* home_of(const View& view, uint64_t hash) {
  const uint64_t b = bucket_of(hash, view.n_from);
  return b < view.boundary ? view.to + bucket_of(hash, view.n_to) : view.from + b;
}

// Which cells of a bucket hold the key, which is one at most, and which were never used; a bit each. No branch depends
// on the data.
struct CellMasks {
  uint32_t matching;
  uint32_t empty;
};

EMB_FN CellMasks cell_masks(const Bucket* bucket, uint64_t key) {
#if defined(__AVX512F__) && !EMB_TSAN
  constexpr uint32_t kAllCells = (1u << kCells) - 1;
  const __m512i line = _mm512_load_si512(bucket);
  const uint32_t same = _mm512_cmpeq_epi64_mask(line, _mm512_set1_epi64(static_cast<int64_t>(key)));
  const uint32_t used = _mm512_cmpge_epu32_mask(line, _mm512_set1_epi32(static_cast<int32_t>(kWordFirstRow)));
  const uint32_t empty = _mm512_testn_epi32_mask(line, line);
  return CellMasks{same & (used >> (2 * kCells)) & kAllCells, (empty >> (2 * kCells)) & kAllCells};
#elif defined(__AVX2__) && !EMB_TSAN
  const __m256i keys = _mm256_load_si256(reinterpret_cast<const __m256i*>(bucket->key));
  const __m256i same = _mm256_cmpeq_epi64(keys, _mm256_set1_epi64x(static_cast<int64_t>(key)));
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bucket->word));
  const __m128i none = _mm_cmpeq_epi32(words, _mm_setzero_si128());
  const __m128i most = _mm_max_epu32(words, _mm_set1_epi32(static_cast<int32_t>(kWordFirstRow)));
  const uint32_t matching = static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(same))) &
                            static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(words, most))));
  const uint32_t last = bucket->word[4];
  return CellMasks{
      matching | static_cast<uint32_t>((bucket->key[4] == key) & (last >= kWordFirstRow)) << 4,
      static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(none))) | static_cast<uint32_t>(last == kWordEmpty) << 4};
#else
  CellMasks masks = {0, 0};
  for (uint32_t i = 0; i < kCells; ++i) {
    const uint32_t word = load_shared(&bucket->word[i]);
    masks.matching |= static_cast<uint32_t>((load_shared(&bucket->key[i]) == key) & (word >= kWordFirstRow)) << i;
    masks.empty |= static_cast<uint32_t>(word == kWordEmpty) << i;
  }
  return masks;
#endif
}

// The slot of the cell that matches; that of the last where none does.
EMB_FN uint32_t slot_of(const CellMasks& masks) {
  return static_cast<uint32_t>(__builtin_ctz(masks.matching | 1u << (kCells - 1)));
}

EMB_FN bool has_empty_cell(const Bucket& bucket) {
  bool has_empty = false;
  for (uint32_t i = 0; i < kCells; ++i) has_empty |= bucket.word[i] == kWordEmpty;
  return has_empty;
}

// For the writer, and for readers that will know afterwards whether anything was written meanwhile.
EMB_FN Cell find_cell(Bucket* bucket, uint64_t key) {
  for (;; ++bucket) {
    const CellMasks masks = cell_masks(bucket, key);
    const uint32_t slot = slot_of(masks);
    if (masks.matching != 0) return Cell{bucket, slot, load_shared(&bucket->word[slot])};
    if (masks.empty != 0) return Cell{};
  }
}

// What a probe beside a writer saw: the cell's row word and the version of its bucket. A miss has no bucket.
struct SharedHit {
  const Bucket* bucket;
  uint32_t word;
  uint32_t version;
};

// Finds a key while a writer may work. With `is_strict` each bucket passed is read whole; without, the caller checks
// afterwards that nothing was written meanwhile.
template <bool is_strict>
EMB_FN SharedHit probe_shared(const Bucket* bucket, uint64_t key) {
  for (;;) {
    const uint32_t version = begin_read(&bucket->control);
    const CellMasks masks = cell_masks(bucket, key);
    const uint32_t word = load_shared(&bucket->word[slot_of(masks)]);
    if (is_strict && !is_unchanged(&bucket->control, version)) continue;
    if (masks.matching != 0) return SharedHit{bucket, word, version};
    if (masks.empty != 0) return SharedHit{nullptr, kWordEmpty, version};
    ++bucket;
  }
}

// Home buckets prefetched beyond the one that is probed; chosen by `make bench-distances`, as the others of this kind.
#ifndef EMB_PROBES_AHEAD
#define EMB_PROBES_AHEAD 24
#endif
EMB_CONST uint64_t kProbesAhead = EMB_PROBES_AHEAD;

// probe(i, home bucket) for each of n keys, whose homes are prefetched.
template <class Probe>
EMB_FN void for_each_home(const View& view, const HashKeys& hash_keys, const int64_t* keys, uint64_t n,
                          const Probe& probe) {
  Bucket* homes[kProbesAhead];
  for (uint64_t i = 0; i < n + kProbesAhead; ++i) {
    Bucket*& home = homes[i % kProbesAhead];
    if (i >= kProbesAhead) probe(i - kProbesAhead, home);
    if (i < n) {
      home = home_of(view, keyed_hash(static_cast<uint64_t>(keys[i]), hash_keys));
      __builtin_prefetch(home);
    }
  }
}

// Keys whose home bucket neither holds them nor ends the probe, about one in seven at the greatest load. They are
// looked for later, when the next bucket has arrived: to wait for it would cost more than all the rest, and no guess is
// right about which keys they are.
EMB_CONST uint32_t kMostLate = 64;

struct LateProbes {
  Bucket* buckets[kMostLate];
  uint32_t numbers[kMostLate];
  uint32_t n;
};

// The key's cell, or none yet. `late` has room for another: finish_late() before it is full.
EMB_FN Cell look_once(LateProbes* late, Bucket* home, uint64_t key, uint32_t number) {
  const CellMasks masks = cell_masks(home, key);
  const uint32_t slot = slot_of(masks);
  const bool is_found = masks.matching != 0;
  const bool is_late = (masks.matching | masks.empty) == 0;
  late->buckets[late->n] = home + 1;
  late->numbers[late->n] = number;
  __builtin_prefetch(home + is_late);
  late->n += is_late;
  return Cell{is_found ? home : nullptr, slot, is_found ? load_shared(&home->word[slot]) : kWordEmpty};
}

EMB_FN bool is_full(const LateProbes& late) { return late.n == kMostLate; }

// found(number, cell) for those that were late; key_of(number) is the key.
template <class KeyOf, class Found>
EMB_FN void finish_late(LateProbes* late, const KeyOf& key_of, const Found& found) {
  for (uint32_t i = 0; i < late->n; ++i) found(late->numbers[i], find_cell(late->buckets[i], key_of(late->numbers[i])));
  late->n = 0;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_PROBE_H_
