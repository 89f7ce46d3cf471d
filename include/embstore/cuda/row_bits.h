// Sets of rows, a bit for each row id, 32 to a word: how they are walked and how they become lists.
//
// 1. A warp takes a word, a lane each of its rows; a word without rows costs one load.
// 2. Lists are ascending: their places come from prefix sums, so no race decides an order.
// 3. A range of rows begins at a multiple of 32.
#ifndef EMBSTORE_CUDA_ROW_BITS_H_
#define EMBSTORE_CUDA_ROW_BITS_H_

#include "order.h"
#include "simt.h"

namespace embstore::cuda {

EMB_CONST uint32_t kWordRows = 32;

using WordTile = Tile<kWordRows>;

struct RowRange {
  uint64_t first;
  uint64_t end;
};

EMB_DEVICE bool holds(const RowRange& range, uint32_t row) { return row >= range.first && row < range.end; }
EMB_DEVICE uint64_t first_word(const RowRange& range) { return range.first / kWordRows; }
EMB_DEVICE uint64_t end_word(const RowRange& range) { return (range.end + kWordRows - 1) / kWordRows; }

// The bits of a word whose rows are before the range's end.
EMB_DEVICE uint32_t bits_within(const RowRange& range, uint64_t word) {
  const uint64_t n = range.end - word * kWordRows;
  return n >= kWordRows ? 0xFFFFFFFFu : (1u << n) - 1;
}

EMB_DEVICE bool has_bit(uint32_t word, uint32_t bit) { return (word >> bit & 1u) != 0; }

// visit(number) of each word of a range, by all lanes of a warp.
template <class Visit>
EMB_DEVICE void for_each_word(const RowRange& range, const Visit& visit) {
  const uint64_t end = end_word(range);
  for (uint64_t w = first_word(range) + WordTile::here().number(); w < end; w += WordTile::count()) visit(w);
}

// visit(row, whether it is in the set) of each row of each word that is not empty, by all lanes of a warp.
template <class Visit>
EMB_DEVICE void for_each_row(const uint32_t* set, const RowRange& range, const Visit& visit) {
  const WordTile warp = WordTile::here();
  for_each_word(range, [&](uint64_t w) {
    const uint32_t bits = set[w] & bits_within(range, w);
    if (bits != 0) visit(static_cast<uint32_t>(w * kWordRows + warp.lane()), has_bit(bits, warp.lane()));
  });
}

// Takes a row out of a set that others change too. Whether it was in.
EMB_DEVICE bool drop_row(uint32_t* set, uint32_t row) {
  uint32_t* const word = &set[row / kWordRows];
  const uint32_t bit = 1u << (row % kWordRows);
  return (load_relaxed(word) & bit) != 0 && (fetch_and(word, ~bit) & bit) != 0;
}

EMB_DEVICE void put_row(uint32_t* set, uint32_t row) { fetch_or(&set[row / kWordRows], 1u << (row % kWordRows)); }

// Sums over the lanes of a warp, which all call it.
EMB_DEVICE uint64_t sum_of_warp(uint32_t own) {
  const WordTile warp = WordTile::here();
  uint64_t sum = own;
  for (uint32_t by = kWordRows / 2; by > 0; by /= 2) sum += warp.shfl_xor(sum, by);
  return sum;
}

// What the lanes of a warp have counted, added to a count, or taken from it, by one of them.
EMB_DEVICE void count_up(uint64_t* count, uint32_t own) {
  const uint64_t n = sum_of_warp(own);
  if (WordTile::here().lane() == 0 && n != 0) fetch_add(count, n);
}

EMB_DEVICE void count_down(uint64_t* count, uint32_t own) {
  const uint64_t n = sum_of_warp(own);
  if (WordTile::here().lane() == 0 && n != 0) fetch_add(count, 0 - n);
}

// counts[i] = the rows of word number i of the range.
EMB_DEVICE void count_words(const uint32_t* set, const RowRange& range, uint32_t* counts) {
  const uint64_t first = first_word(range), n = end_word(range) - first;
  for (uint64_t i = grid_thread(); i < n; i += grid_threads())
    counts[i] = n_bits(set[first + i] & bits_within(range, first + i));
}

// places[i] = the rows before word number i of the range. A warp reads 32 words, then takes those that have rows.
EMB_DEVICE void list_rows(const uint32_t* set, const RowRange& range, const uint32_t* places, uint32_t* out) {
  const WordTile warp = WordTile::here();
  const uint64_t first = first_word(range), end = end_word(range);
  for (uint64_t at = first + warp.number() * kWordRows; at < end; at += WordTile::count() * kWordRows) {
    const uint64_t mine = at + warp.lane();
    const uint32_t word = mine < end ? set[mine] & bits_within(range, mine) : 0;
    const uint32_t place = mine < end ? places[mine - first] : 0;
    for (uint32_t left = warp.ballot(word != 0); left != 0; left &= left - 1) {
      const uint32_t from = first_bit(left);
      const uint32_t bits = warp.shfl(word, from);
      const uint32_t before = warp.shfl(place, from);
      if (has_bit(bits, warp.lane()))
        out[before + n_bits(bits & ((1u << warp.lane()) - 1u))] =
            static_cast<uint32_t>((at + from) * kWordRows + warp.lane());
    }
  }
}

// ---- histograms of bytes: kDigits bins in a block's shared memory

// All lanes of a warp call it. Bytes often agree: those of the first lane that counts are added at once.
EMB_DEVICE void add_to_bins(uint32_t* bins, bool is_counted, uint32_t bin) {
  const WordTile warp = WordTile::here();
  const uint32_t counted = warp.ballot(is_counted);
  if (counted == 0) return;
  const uint32_t leader = first_bit(counted);
  const uint32_t common = warp.shfl(bin, leader);
  const uint32_t same = warp.ballot(is_counted && bin == common);
  if (warp.lane() == leader) fetch_add(&bins[common], n_bits(same));
  if (is_counted && bin != common) fetch_add(&bins[bin], 1u);
}

// All threads of a block call these, before and after they count.
EMB_DEVICE void clear_bins(uint32_t* bins) {
  bins[block_thread()] = 0;
  block_barrier();
}

EMB_DEVICE void add_bins(const uint32_t* bins, uint64_t* sums) {
  block_barrier();
  const uint32_t n = bins[block_thread()];
  if (n != 0) fetch_add(&sums[block_thread()], static_cast<uint64_t>(n));
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_ROW_BITS_H_
