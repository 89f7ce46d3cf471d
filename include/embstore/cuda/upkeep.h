// What keeps a table in order at a step: candidates expire, frequencies and the filter halve, the base of steps
// advances.
//
// Each is one launch, in which no other thread reads the counter that it writes.
#ifndef EMBSTORE_CUDA_UPKEEP_H_
#define EMBSTORE_CUDA_UPKEEP_H_

#include "arena.h"
#include "row_bits.h"

namespace embstore::cuda {

// Drops the candidates that have not been seen for ttl steps; `now` is the present epoch.
EMB_DEVICE void expire_candidates(const TableView& t, int64_t now, int64_t ttl) {
  uint32_t n_dropped = 0;
  for (uint64_t cell = grid_thread(); cell < t.n_lines * kCells; cell += grid_threads()) {
    uint32_t* const word = &t.lines[cell / kCells].word[cell % kCells];
    if (!is_candidate_word(*word)) continue;
    if (!is_candidate_expired(candidate_epoch(*word, t.candidate_epoch), now, ttl)) continue;
    *word = kWordEmpty;
    ++n_dropped;
  }
  count_down(&t.counters->n_candidates, n_dropped);
  count_up(&t.counters->n_candidates_expired, n_dropped);
}

EMB_DEVICE void halve_frequencies(const TableView& t, uint64_t n_ids) {
  for_each_row(t.live, RowRange{0, n_ids}, [&](uint32_t row, bool is_live) {
    if (is_live) meta_of(t, row)->freq >>= 1;
    if (t.dirty != nullptr && row % kWordRows == 0) t.dirty[row / kWordRows] |= t.live[row / kWordRows];
  });
}

// Rows older than the new base, which is `by` steps later, take it as their step.
EMB_DEVICE void advance_base(const TableView& t, uint64_t by, uint64_t n_ids) {
  const WordTile warp = WordTile::here();
  uint32_t n_clamped = 0;
  for_each_row(t.live, RowRange{0, n_ids}, [&](uint32_t row, bool is_live) {
    Meta* const meta = meta_of(t, row);
    const bool is_clamped = is_live && meta->step < by;
    if (is_live) meta->step = is_clamped ? 0 : meta->step - static_cast<uint32_t>(by);
    const uint32_t clamped = warp.ballot(is_clamped);
    if (t.dirty != nullptr && row % kWordRows == 0) t.dirty[row / kWordRows] |= clamped;
    n_clamped += is_clamped;
  });
  count_up(&t.counters->n_steps_clamped, n_clamped);
}

EMB_DEVICE void halve_bloom(uint64_t* words, uint64_t n, uint32_t cell_bits, Counters* counters) {
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) words[i] = bloom_halved(words[i], cell_bits);
  if (grid_thread() == 0) counters->n_bloom_added = 0;
}

// The cells of a word that are not zero.
EMB_DEVICE uint32_t n_bloom_cells_used(uint64_t word, uint32_t cell_bits) {
  uint64_t any = word;
  for (uint32_t bit = 1; bit < cell_bits; ++bit) any |= word >> bit;
  const uint64_t low = cell_bits == 1   ? 0xFFFFFFFFFFFFFFFFull
                       : cell_bits == 2 ? 0x5555555555555555ull
                                        : 0x1111111111111111ull;
  return n_bits(static_cast<uint32_t>(any & low)) + n_bits(static_cast<uint32_t>((any & low) >> 32));
}

EMB_DEVICE void count_bloom_cells(const uint64_t* words, uint64_t n, uint32_t cell_bits, uint64_t* n_used) {
  uint32_t own = 0;
  for (uint64_t i = grid_thread(); i < n; i += grid_threads()) own += n_bloom_cells_used(words[i], cell_bits);
  count_up(n_used, own);
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_UPKEEP_H_
