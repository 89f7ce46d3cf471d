// Prefix sums and stable sorts: what puts a batch, or the rows of a table, into an order that no race decides.
//
// 1. A scan is two launches of the same number of blocks: the sum of each block's share, then the sums before each item.
// 2. A share is a range of whole blocks of threads; items are taken in order, kBlockThreads at a time.
#ifndef EMBSTORE_CUDA_ORDER_H_
#define EMBSTORE_CUDA_ORDER_H_

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

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_ORDER_H_
