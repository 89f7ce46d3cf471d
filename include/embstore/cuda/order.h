// Prefix sums and stable sorts: what puts a batch, or the rows of a table, into an order that no race decides.
//
// 1. A scan is two launches of the same number of blocks: the sum of each block's share, then the sums before each
// item.
// 2. A share is a range of whole blocks of threads; items are taken in order, kBlockThreads at a time.
// 3. A sort goes digit by digit, the least first. In each pass a warp counts, and then moves, a segment of the items 32
// at
//    a time; the counts, digit by digit and within a digit by segment, are scanned in between. So it is stable.
#ifndef EMBSTORE_CUDA_ORDER_H_
#define EMBSTORE_CUDA_ORDER_H_

#include "../core/hash.h"
#include "simt.h"

namespace embstore::cuda {

EMB_CONST uint32_t kWarp = 32;
EMB_CONST uint32_t kBlockWarps = kBlockThreads / kWarp;

// A number of items that the host knows, or that a kernel has left in memory.
EMB_DEVICE uint64_t count_of(uint64_t n, const uint64_t* n_at) { return n_at != nullptr ? *n_at : n; }

struct Share {
  uint64_t first;
  uint64_t end;
};

// The items of this block, out of n.
EMB_DEVICE Share share_of_block(uint64_t n) {
  const uint64_t n_rounds = (n + kBlockThreads - 1) / kBlockThreads;
  const uint64_t per_block = (n_rounds + n_blocks() - 1) / n_blocks() * kBlockThreads;
  const uint64_t first = per_block * block_number();
  return Share{first < n ? first : n, first + per_block < n ? first + per_block : n};
}

struct BlockPrefix {
  uint32_t before;  // the sum over the threads before this one
  uint32_t total;   // over all of the block
};

// All threads of a block call it; `warp_sums` is shared memory of kBlockWarps words.
EMB_DEVICE BlockPrefix block_prefix(uint32_t x, uint32_t* warp_sums) {
  const Tile<kWarp> warp = Tile<kWarp>::here();
  uint32_t upto = x;
  for (uint32_t by = 1; by < kWarp; by *= 2) {
    const uint32_t other = warp.shfl(upto, warp.lane() >= by ? warp.lane() - by : 0);
    if (warp.lane() >= by) upto += other;
  }
  const uint32_t number = block_thread() / kWarp;
  block_barrier();  // nobody reads the sums of the last round any more
  if (warp.lane() == kWarp - 1) warp_sums[number] = upto;
  block_barrier();
  BlockPrefix prefix = {upto - x, 0};
  for (uint32_t w = 0; w < kBlockWarps; ++w) {
    if (w < number) prefix.before += warp_sums[w];
    prefix.total += warp_sums[w];
  }
  return prefix;
}

// The sum of in[first .. end), which every thread of the block gets.
EMB_DEVICE uint64_t block_sum(const uint32_t* in, Share share, uint32_t* warp_sums) {
  uint64_t sum = 0;
  for (uint64_t at = share.first; at < share.end; at += kBlockThreads) {
    const uint64_t i = at + block_thread();
    sum += block_prefix(i < share.end ? in[i] : 0, warp_sums).total;
  }
  return sum;
}

// out[i] = the sum of all in before i; `sums` are those of the blocks' shares. Returns the sum of all.
EMB_DEVICE uint64_t block_write_prefixes(const uint32_t* in, Share share, const uint64_t* sums, uint32_t* warp_sums,
                                         uint32_t* out) {
  uint64_t before = 0, total = 0;
  for (uint32_t b = 0; b < n_blocks(); ++b) {
    if (b < block_number()) before += sums[b];
    total += sums[b];
  }
  for (uint64_t at = share.first; at < share.end; at += kBlockThreads) {
    const uint64_t i = at + block_thread();
    const BlockPrefix prefix = block_prefix(i < share.end ? in[i] : 0, warp_sums);
    if (i < share.end) out[i] = static_cast<uint32_t>(before) + prefix.before;
    before += prefix.total;
  }
  return total;
}

EMB_CONST uint32_t kDigits = kBlockThreads;  // of 8 bits each: a thread of a block for each
EMB_CONST uint32_t kDigitBits = 8;

enum class DigitOf : uint64_t { kWord = 0, kSignedKey = 1, kPartition = 2 };

// What a pass of a sort reads: the items are indices into the keys.
struct SortPass {
  const void* keys;  // uint32_t for kWord, otherwise uint64_t
  DigitOf digit_of;
  uint32_t shift;
  const uint32_t* from;  // or null: 0, 1, 2, ...
  uint64_t n;
  uint64_t n_segments;
};

EMB_DEVICE uint32_t item_at(const SortPass& p, uint64_t i) {
  return p.from != nullptr ? p.from[i] : static_cast<uint32_t>(i);
}

EMB_DEVICE uint32_t digit_of(const SortPass& p, uint32_t item) {
  if (p.digit_of == DigitOf::kWord) return static_cast<const uint32_t*>(p.keys)[item] >> p.shift & (kDigits - 1);
  const uint64_t key = static_cast<const uint64_t*>(p.keys)[item];
  if (p.digit_of == DigitOf::kPartition) return partition_of(key);
  const uint64_t ordered = key ^ 0x8000000000000000ull;
  return static_cast<uint32_t>(ordered >> p.shift) & (kDigits - 1);
}

// Segment `number` of n_segments: whole warps of items.
EMB_DEVICE Share segment_of(const SortPass& p, uint64_t number) {
  const uint64_t n_rounds = (p.n + kWarp - 1) / kWarp;
  const uint64_t per_segment = (n_rounds + p.n_segments - 1) / p.n_segments * kWarp;
  const uint64_t first = per_segment * number;
  return Share{first < p.n ? first : p.n, first + per_segment < p.n ? first + per_segment : p.n};
}

// The lanes of a warp whose items have this lane's digit; none for a lane without an item.
EMB_DEVICE uint32_t lanes_of_digit(const Tile<kWarp>& warp, uint32_t digit, bool has_item) {
  uint32_t same = warp.ballot(has_item);
  for (uint32_t bit = 0; bit < kDigitBits; ++bit) {
    const bool is_set = (digit >> bit & 1u) != 0;
    const uint32_t set = warp.ballot(is_set);
    same &= is_set ? set : ~set;
  }
  return has_item ? same : 0;
}

// Adds to counts[d], in shared memory, how many items of a segment have digit d.
EMB_DEVICE void count_digits(const SortPass& p, const Tile<kWarp>& warp, Share segment, uint32_t* counts) {
  for (uint64_t at = segment.first; at < segment.end; at += kWarp) {
    const uint64_t i = at + warp.lane();
    const bool has_item = i < segment.end;
    const uint32_t digit = has_item ? digit_of(p, item_at(p, i)) : 0;
    const uint32_t same = lanes_of_digit(warp, digit, has_item);
    if (has_item && first_bit(same) == warp.lane()) counts[digit] += n_bits(same);
    warp.sync();
  }
}

// Moves a segment's items; places[d] is where the next one of digit d goes.
EMB_DEVICE void move_items(const SortPass& p, const Tile<kWarp>& warp, Share segment, uint32_t* places, uint32_t* to) {
  for (uint64_t at = segment.first; at < segment.end; at += kWarp) {
    const uint64_t i = at + warp.lane();
    const bool has_item = i < segment.end;
    const uint32_t item = has_item ? item_at(p, i) : 0;
    const uint32_t digit = has_item ? digit_of(p, item) : 0;
    const uint32_t same = lanes_of_digit(warp, digit, has_item);
    const uint32_t rank = n_bits(same & ((1u << warp.lane()) - 1u));
    if (has_item) to[uint64_t{places[digit]} + rank] = item;
    warp.sync();
    if (has_item && rank == 0) places[digit] += n_bits(same);
    warp.sync();
  }
}

// A block takes a segment a warp. Its table in shared memory is (kBlockWarps, kDigits); thread d deals with digit d of
// it. `table` is (kDigits, n_segments).
EMB_DEVICE uint32_t* place_in_table(uint32_t* table, const SortPass& p, uint64_t segment) {
  return table + block_thread() * p.n_segments + segment;
}

EMB_DEVICE void block_count_digits(const SortPass& p, uint32_t* shared, uint32_t* table) {
  const Tile<kWarp> warp = Tile<kWarp>::here();
  const uint32_t number = block_thread() / kWarp;
  for (uint64_t at = uint64_t{block_number()} * kBlockWarps; at < p.n_segments;
       at += uint64_t{n_blocks()} * kBlockWarps) {
    for (uint32_t w = 0; w < kBlockWarps; ++w) shared[w * kDigits + block_thread()] = 0;
    block_barrier();
    if (at + number < p.n_segments) count_digits(p, warp, segment_of(p, at + number), shared + number * kDigits);
    block_barrier();
    for (uint32_t w = 0; w < kBlockWarps; ++w)
      if (at + w < p.n_segments) *place_in_table(table, p, at + w) = shared[w * kDigits + block_thread()];
  }
}

EMB_DEVICE void block_move_items(const SortPass& p, uint32_t* shared, uint32_t* table, uint32_t* to) {
  const Tile<kWarp> warp = Tile<kWarp>::here();
  const uint32_t number = block_thread() / kWarp;
  for (uint64_t at = uint64_t{block_number()} * kBlockWarps; at < p.n_segments;
       at += uint64_t{n_blocks()} * kBlockWarps) {
    for (uint32_t w = 0; w < kBlockWarps; ++w)
      if (at + w < p.n_segments) shared[w * kDigits + block_thread()] = *place_in_table(table, p, at + w);
    block_barrier();
    if (at + number < p.n_segments) move_items(p, warp, segment_of(p, at + number), shared + number * kDigits, to);
    block_barrier();
  }
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_ORDER_H_
