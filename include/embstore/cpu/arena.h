// Rows of one fixed stride in chunks that never move, found through a directory that never moves either.
//
// 1. A row's address is valid from grow_to() until the arena is destroyed: readers need no lock to use it.
// 2. All chunks hold the same power of two of rows, about 2 MiB; chunks come in extents of up to 32 MiB, backed by huge
//    pages but for the first, whose small pages keep a thousand small tables small.
// 3. Memory is zero until it is written. bytes() counts what rows up to the greatest ever used have touched.
// One writer grows; any thread may ask for rows.
#ifndef EMBSTORE_CPU_ARENA_H_
#define EMBSTORE_CPU_ARENA_H_

#include <algorithm>
#include <vector>

#include "../core/types.h"
#include "memory.h"
#include "ranges.h"
#include "slab.h"

namespace embstore::cpu {

// Bytes from one row to the next: a multiple of 64 where that wastes at most an eighth, else of 16; of 4 below that.
inline uint64_t stride_of(uint64_t row_bytes) {
  if (row_bytes < 16) return round_up(row_bytes, 4);
  const uint64_t lines = round_up(row_bytes, 64);
  return (lines - row_bytes) * 8 <= row_bytes ? lines : round_up(row_bytes, 16);
}

class Arena {
 public:
  explicit Arena(uint64_t stride) : stride_(stride) {
    while (stride << (shift_ + 1) <= kHugePage) ++shift_;
    directory_ = Region::reserve(round_up(((uint64_t{kMaxRows} >> shift_) + 1) * sizeof(char*), kSmallPage));
  }

  uint64_t stride() const { return stride_; }
  uint64_t capacity() const { return n_chunks_ << shift_; }

  Slab slab() const { return Slab{chunks(), shift_, static_cast<uint32_t>(stride_)}; }
  char* row(uint32_t id) const { return slab_row(slab(), id); }

  // Address space for rows [0, n_rows). Throws std::bad_alloc and leaves what was.
  void grow_to(uint64_t n_rows) {
    while (capacity() < n_rows) add_extent();
  }

  // Rows [0, n_rows) will have been written: for bytes().
  void note_used(uint64_t n_rows) { n_used_ = std::max(n_used_, n_rows); }

  // Takes the pages of rows [n_used, n_rows) from the system now.
  void prefault(uint64_t n_rows) {
    if (n_rows <= n_used_) return;
    const uint64_t first_chunk = n_used_ >> shift_;
    const uint64_t n_touched = ((n_rows - 1) >> shift_) + 1 - first_chunk;
    for_ranges(n_touched, n_parts_for(n_rows - n_used_), [&](uint32_t, uint64_t begin, uint64_t end) {
      for (uint64_t chunk = first_chunk + begin; chunk < first_chunk + end; ++chunk) {
        const uint64_t first = std::max(n_used_, chunk << shift_);
        const uint64_t last = std::min(n_rows, (chunk + 1) << shift_);
        prefault_pages(row(static_cast<uint32_t>(first)), (last - first) * stride_);
      }
    });
    note_used(n_rows);
  }

  uint64_t bytes() const { return bytes_for(n_used_); }

  // What bytes() becomes when n_rows are in use.
  uint64_t bytes_for(uint64_t n_rows) const {
    const uint64_t first = std::min<uint64_t>(n_rows, uint64_t{1} << shift_) * stride_;
    const uint64_t rest = n_rows * stride_ - first;
    return round_up(first, kSmallPage) + round_up(rest, kHugePage) + round_up((n_rows >> shift_) * 8, kSmallPage);
  }

 private:
  char** chunks() const { return reinterpret_cast<char**>(directory_.data()); }
  uint64_t chunk_bytes() const { return stride_ << shift_; }

  void add_extent() {
    constexpr uint64_t kMostChunks = 16;
    const uint64_t n_new = n_chunks_ == 0 ? 1 : std::min(n_chunks_, kMostChunks);
    extents_.reserve(extents_.size() + 1);
    Region extent = n_chunks_ == 0 ? Region::reserve(round_up(chunk_bytes(), kSmallPage))
                                   : Region::allocate(std::max(n_new * chunk_bytes(), kHugePage));
    for (uint64_t i = 0; i < n_new; ++i) store_shared(chunks() + n_chunks_ + i, extent.data() + i * chunk_bytes());
    n_chunks_ += n_new;
    extents_.push_back(std::move(extent));
  }

  uint64_t stride_;
  uint32_t shift_ = 0;
  uint64_t n_chunks_ = 0;
  uint64_t n_used_ = 0;
  Region directory_;
  std::vector<Region> extents_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_ARENA_H_
