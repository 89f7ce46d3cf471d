// Kernels that test the emulator: right ones, and ones that are wrong in one way each.
#include "embstore/cuda/simt.h"

namespace embstore::cuda {

struct ScanArgs {
  const uint64_t* in;
  uint64_t* out;
  uint64_t n;
};

// Inclusive sums of each block of 256, by Hillis and Steele.
template <bool has_all_barriers>
EMB_DEVICE void scan_block(const ScanArgs& a) {
  EMB_SHARED(uint64_t, sums, kBlockThreads);
  const uint32_t t = block_thread();
  for (uint64_t base = static_cast<uint64_t>(block_number()) * kBlockThreads; base < a.n; base += grid_threads()) {
    uint64_t sum = base + t < a.n ? a.in[base + t] : 0;
    store_relaxed(&sums[t], sum);
    block_barrier();
    for (uint32_t by = 1; by < kBlockThreads; by *= 2) {
      const uint64_t before = t >= by ? load_relaxed(&sums[t - by]) : 0;
      if (has_all_barriers) block_barrier();
      sum += before;
      store_relaxed(&sums[t], sum);
      block_barrier();
    }
    if (base + t < a.n) a.out[base + t] = sum;
  }
}

EMB_KERNEL(sample_scan, ScanArgs) { scan_block<true>(a); }
EMB_KERNEL(sample_scan_without_barrier, ScanArgs) { scan_block<false>(a); }

// As above with plain accesses: what ThreadSanitizer must name.
EMB_KERNEL(sample_reverse, ScanArgs) {
  EMB_SHARED(uint64_t, words, kBlockThreads);
  words[block_thread()] = a.in[grid_thread()];
  block_barrier();
  a.out[grid_thread()] = words[kBlockThreads - 1 - block_thread()];
}

EMB_KERNEL(sample_reverse_without_barrier, ScanArgs) {
  EMB_SHARED(uint64_t, words, kBlockThreads);
  words[block_thread()] = a.in[grid_thread()];
  a.out[grid_thread()] = words[kBlockThreads - 1 - block_thread()];
}

// Shared memory that nobody wrote.
EMB_KERNEL(sample_read_poison, ScanArgs) {
  EMB_SHARED(uint64_t, words, kBlockThreads);
  if (grid_thread() < a.n) a.out[grid_thread()] = words[block_thread()];
}

template <uint32_t G>
EMB_DEVICE void reduce_by_tiles(const ScanArgs& a) {
  const Tile<G> tile = Tile<G>::here();
  for (uint64_t i = tile.number(); i < a.n; i += tile.count()) {
    uint64_t sum = a.in[i * G + tile.lane()];
    for (uint32_t by = G / 2; by != 0; by /= 2) sum += tile.shfl_xor(sum, by);
    const uint32_t odd = tile.ballot((a.in[i * G + tile.lane()] & 1) != 0);
    if (tile.lane() == 0) a.out[i] = sum * 64 + n_bits(odd);
    tile.sync();
  }
}

EMB_KERNEL(sample_reduce_1, ScanArgs) { reduce_by_tiles<1>(a); }
EMB_KERNEL(sample_reduce_2, ScanArgs) { reduce_by_tiles<2>(a); }
EMB_KERNEL(sample_reduce_4, ScanArgs) { reduce_by_tiles<4>(a); }
EMB_KERNEL(sample_reduce_8, ScanArgs) { reduce_by_tiles<8>(a); }
EMB_KERNEL(sample_reduce_16, ScanArgs) { reduce_by_tiles<16>(a); }
EMB_KERNEL(sample_reduce_32, ScanArgs) { reduce_by_tiles<32>(a); }

struct ClaimArgs {
  uint64_t* cells;     // 0: free; else who has it, plus 1
  uint64_t* n_claims;  // per cell
  uint64_t n_cells;
};

EMB_KERNEL(sample_claim, ClaimArgs) {
  const uint64_t cell = grid_thread() % a.n_cells;
  if (compare_swap(&a.cells[cell], uint64_t{0}, grid_thread() + 1) == 0) fetch_add(&a.n_claims[cell], uint64_t{1});
}

EMB_KERNEL(sample_claim_without_swap, ClaimArgs) {
  const uint64_t cell = grid_thread() % a.n_cells;
  if (load_relaxed(&a.cells[cell]) == 0) {
    store_relaxed(&a.cells[cell], grid_thread() + 1);
    fetch_add(&a.n_claims[cell], uint64_t{1});
  }
}

// One writes and says so, the others wait for the word.
EMB_KERNEL(sample_publish, ClaimArgs) {
  if (grid_thread() == 0) {
    a.n_claims[0] = 42;
    store_release(&a.cells[0], uint64_t{1});
  } else {
    while (load_acquire(&a.cells[0]) == 0) {
    }
    if (a.n_claims[0] != 42) fetch_add(&a.n_claims[1], uint64_t{1});
  }
}

EMB_KERNEL(sample_publish_without_release, ClaimArgs) {
  if (grid_thread() == 0) {
    a.n_claims[0] = 42;
    store_relaxed(&a.cells[0], uint64_t{1});
  } else {
    while (load_acquire(&a.cells[0]) == 0) {
    }
    if (a.n_claims[0] != 42) fetch_add(&a.n_claims[1], uint64_t{1});
  }
}

enum class Between { kNothing, kBallot, kSync };

// The lanes of the first tile write a row, its first lane says so; the last tile reads the row.
template <Between between>
EMB_DEVICE void publish_by_tile(const ClaimArgs& a) {
  const Tile<8> tile = Tile<8>::here();
  if (tile.number() == 0) {
    a.n_claims[tile.lane()] = 42;
    if (between == Between::kSync) tile.sync();
    if (between == Between::kBallot) tile.ballot(true);
    if (tile.lane() == 0) store_release(&a.cells[0], uint64_t{1});
  } else if (tile.number() == Tile<8>::count() - 1) {
    while (tile.lane() == 0 && load_acquire(&a.cells[0]) == 0) {
    }
    tile.sync();
    if (a.n_claims[tile.lane()] != 42) fetch_add(&a.cells[1], uint64_t{1});
  }
}

EMB_KERNEL(sample_publish_by_tile, ClaimArgs) { publish_by_tile<Between::kSync>(a); }
EMB_KERNEL(sample_publish_by_tile_with_ballot, ClaimArgs) { publish_by_tile<Between::kBallot>(a); }
EMB_KERNEL(sample_publish_by_tile_without_sync, ClaimArgs) { publish_by_tile<Between::kNothing>(a); }

// All lanes of each tile but the last wait, at collectives, for a word of the last thread of the block.
EMB_KERNEL(sample_wait_by_ballot, ClaimArgs) {
  const Tile<8> tile = Tile<8>::here();
  if (block_thread() / 8 == kBlockThreads / 8 - 1) {
    if (tile.lane() == 7) store_release(&a.cells[block_number()], uint64_t{1});
  } else {
    while (!tile.any(load_acquire(&a.cells[block_number()]) != 0)) {
    }
    if (tile.lane() == 0) fetch_add(&a.n_claims[0], uint64_t{1});
  }
}

// Each operation on a word, alone: out[i] is what it returned, and out[16 + i] what it left.
template <class T>
EMB_DEVICE void all_words(const ScanArgs& a, T* words) {
  if (grid_thread() != 0) return;
  for (uint32_t i = 0; i < 9; ++i) words[i] = static_cast<T>(a.in[0]);
  const T x = static_cast<T>(a.in[1]);
  a.out[0] = compare_swap(&words[0], static_cast<T>(a.in[0]), x);
  a.out[1] = compare_swap(&words[1], static_cast<T>(a.in[0] + 1), x);
  a.out[2] = fetch_add(&words[2], x);
  a.out[3] = fetch_or(&words[3], x);
  a.out[4] = fetch_and(&words[4], x);
  a.out[5] = fetch_min(&words[5], x);
  a.out[6] = fetch_max(&words[6], x);
  a.out[7] = exchange(&words[7], x);
  store_relaxed(&words[8], load_relaxed(&words[8]) + 1);
  store_release(&words[8], load_acquire(&words[8]) + 1);
  for (uint32_t i = 0; i < 9; ++i) a.out[16 + i] = words[i];
}

EMB_KERNEL(sample_words_32, ScanArgs) {
  EMB_SHARED(uint32_t, words, 16);
  all_words(a, words);
}

EMB_KERNEL(sample_words_64, ScanArgs) {
  EMB_SHARED(uint64_t, words, 16);
  all_words(a, words);
}

// out[lane] of a tile: a float of the lane on its right, around the end; and the lowest bit of a ballot.
EMB_KERNEL(sample_shfl, ScanArgs) {
  const Tile<16> tile = Tile<16>::here();
  const float x = tile.shfl(static_cast<float>(tile.lane()) + 0.5f, tile.lane() + 1);
  const uint32_t all = tile.ballot(tile.lane() >= 3);
  if (grid_thread() < a.n) a.out[grid_thread()] = static_cast<uint64_t>(x * 2.0f) * 100 + first_bit(all);
}

// A lock that the first lane of a tile takes for all of it.
EMB_KERNEL(sample_lock, ClaimArgs) {
  const Tile<8> tile = Tile<8>::here();
  for (bool is_done = false; !is_done;) {
    uint32_t has_lock = 0;
    if (tile.lane() == 0) has_lock = compare_swap(&a.cells[0], uint64_t{0}, uint64_t{1}) == 0;
    if (tile.shfl(has_lock, 0) != 0) {
      if (tile.lane() == 3) store_relaxed(&a.n_claims[0], load_relaxed(&a.n_claims[0]) + 1);
      tile.sync();
      if (tile.lane() == 0) store_release(&a.cells[0], uint64_t{0});
      is_done = true;
    }
  }
}

EMB_KERNEL(sample_early_exit, ScanArgs) {
  const Tile<8> tile = Tile<8>::here();
  if (block_thread() == 3) return;
  const uint32_t all = tile.ballot(true);
  if (block_thread() == 0) a.out[0] = all;
}

EMB_KERNEL(sample_two_collectives, ScanArgs) {
  const Tile<8> tile = Tile<8>::here();
  if (tile.lane() == 5)
    tile.sync();
  else
    a.out[0] = tile.ballot(true);
}

EMB_KERNEL(sample_spin, ClaimArgs) {
  while (load_relaxed(&a.cells[0]) == 0) {
  }
}

EMB_KERNEL(sample_lock_over_barrier, ClaimArgs) {
  while (compare_swap(&a.cells[0], uint64_t{0}, uint64_t{1}) != 0) {
  }
  block_barrier();
  store_release(&a.cells[0], uint64_t{0});
}

EMB_KERNEL(sample_write_beyond, ScanArgs) {
  if (grid_thread() == 0) a.out[a.n] = 1;
}

EMB_KERNEL(sample_store16, ScanArgs) {
  if (grid_thread() == 0) store16(a.out, load16(a.in + a.n));
}

// For the measure of speed: threads that only pass through, and lanes that only meet.
EMB_KERNEL(sample_pass, ScanArgs) {
  if (grid_thread() == a.n) a.out[0] = 1;
}

EMB_KERNEL(sample_meet, ScanArgs) {
  const Tile<8> tile = Tile<8>::here();
  uint32_t all = 0;
  for (uint64_t i = 0; i < a.n; ++i) all += tile.ballot(((i >> tile.lane()) & 1) != 0);
  if (tile.lane() == 0) store_relaxed(&a.out[0], uint64_t{all});
}

EMB_KERNEL(sample_meet_32, ScanArgs) {
  const Tile<32> tile = Tile<32>::here();
  uint32_t all = 0;
  for (uint64_t i = 0; i < a.n; ++i) all += tile.shfl(static_cast<uint32_t>(i), static_cast<uint32_t>(i) & 31);
  if (tile.lane() == 0) store_relaxed(&a.out[0], uint64_t{all});
}

EMB_KERNEL(sample_meet_block, ScanArgs) {
  for (uint64_t i = 0; i < a.n; ++i) block_barrier();
}

}  // namespace embstore::cuda
