// Scans and sorts.
#include "embstore/cuda/order.h"

using namespace embstore;
using namespace embstore::cuda;

struct ScanSumsArgs {
  const uint32_t* counts;
  uint64_t n;
  const uint64_t* n_at;  // or null
  uint64_t* sums;        // (n_blocks,)
};

EMB_KERNEL(scan_sums, ScanSumsArgs) {
  EMB_SHARED(uint32_t, warp_sums, kBlockWarps);
  const uint64_t sum = block_sum(a.counts, share_of_block(count_of(a.n, a.n_at)), warp_sums);
  if (block_thread() == 0) a.sums[block_number()] = sum;
}

struct ScanWriteArgs {
  const uint32_t* counts;
  uint64_t n;
  const uint64_t* n_at;  // or null
  const uint64_t* sums;  // of scan_sums, launched with the same number of threads
  uint32_t* out;         // (n,) may be `counts`
  uint64_t* total;       // or null
};

EMB_KERNEL(scan_write, ScanWriteArgs) {
  EMB_SHARED(uint32_t, warp_sums, kBlockWarps);
  const Share share = share_of_block(count_of(a.n, a.n_at));
  const uint64_t total = block_write_prefixes(a.counts, share, a.sums, warp_sums, a.out);
  if (grid_thread() == 0 && a.total != nullptr) *a.total = total;
}

struct SortHistogramArgs {
  const void* keys;
  uint64_t digit_of;
  uint64_t shift;
  const uint32_t* from;  // (n,) or null
  uint64_t n;
  const uint64_t* n_at;  // or null
  uint64_t n_segments;
  uint32_t* table;  // (kDigits, n_segments)
};

EMB_KERNEL(sort_histogram, SortHistogramArgs) {
  EMB_SHARED(uint32_t, counts, kBlockWarps* kDigits);
  const SortPass pass = {
      a.keys,      static_cast<DigitOf>(a.digit_of), static_cast<uint32_t>(a.shift), a.from, count_of(a.n, a.n_at),
      a.n_segments};
  block_count_digits(pass, counts, a.table);
}

struct SortScatterArgs {
  const void* keys;
  uint64_t digit_of;
  uint64_t shift;
  const uint32_t* from;  // (n,) or null
  uint64_t n;
  const uint64_t* n_at;  // or null
  uint64_t n_segments;
  uint32_t* table;  // of sort_histogram, scanned
  uint32_t* to;     // (n,)
};

EMB_KERNEL(sort_scatter, SortScatterArgs) {
  EMB_SHARED(uint32_t, places, kBlockWarps* kDigits);
  const SortPass pass = {
      a.keys,      static_cast<DigitOf>(a.digit_of), static_cast<uint32_t>(a.shift), a.from, count_of(a.n, a.n_at),
      a.n_segments};
  block_move_items(pass, places, a.table, a.to);
}
