// Pooled reads: bags of keys to their pooled rows, without the rows of all keys in memory.
//
// 1. Rows are pooled where they lie if no writer worked before, while and after; else copies are, which gather.h reads
//    whole.
// 2. Any number of threads may read beside one writer.
#ifndef EMBSTORE_CPU_POOLED_FIND_H_
#define EMBSTORE_CPU_POOLED_FIND_H_

#include "gather.h"
#include "pooling.h"

namespace embstore::cpu {

class PooledReader {
 public:
  // Throws std::bad_alloc; run() does not.
  PooledReader(const Storage& storage, const std::atomic<uint64_t>& write_count, const RowFormat& format,
               const Kernels& kernels, const void* default_row, const es_part& part)
      : storage_(storage),
        write_count_(write_count),
        format_(format),
        kernels_(kernels),
        default_row_(default_row),
        part_(part),
        n_threads_(n_parts_for(part.n)),
        has_long_bags_(longest_bag(part) > Reader::kChunk) {
    const uint64_t n_keys = has_long_bags_ ? part.n : n_threads_ * Reader::kChunk;
    scratch_.resize(n_threads_ * pool_scratch_floats(format.dim));
    sources_.resize(n_keys);
    words_.resize(n_keys);
    copies_.resize(n_keys * format.dim);  // touched beside a writer alone
  }

  void run() {
    ThreadPool::instance().run(n_threads_, [&](uint32_t thread) {
      uint64_t bag = first_bag_of(part_, thread, n_threads_);
      const uint64_t end = first_bag_of(part_, thread + 1, n_threads_);
      while (bag < end) {
        uint64_t next = bag + 1;
        while (next < end && n_keys(bag, next + 1) <= Reader::kChunk) ++next;
        if (!pool_in_place(thread, bag, next)) pool_copies(thread, bag, next);
        bag = next;
      }
    });
  }

 private:
  uint64_t n_keys(uint64_t first_bag, uint64_t end_bag) const {
    return static_cast<uint64_t>(part_.offsets[end_bag] - part_.offsets[first_bag]);
  }

  // Where a thread's room for the keys of some bags begins: its own chunk, or the keys' place in the part.
  uint64_t room_of(uint32_t thread, uint64_t first_bag) const {
    return has_long_bags_ ? static_cast<uint64_t>(part_.offsets[first_bag]) : thread * Reader::kChunk;
  }

  // False, and no result, if a writer worked.
  bool pool_in_place(uint32_t thread, uint64_t first_bag, uint64_t end_bag) {
    const uint64_t writes_before = write_count_.load(std::memory_order_acquire);
    if ((writes_before & 1) != 0) return false;
    uint64_t view_version;
    const FindContext c = {storage_.index.shared_view(&view_version), storage_.index.hash_keys(),
                           storage_.rows.values_slab(), storage_.rows.versions(), default_row_};
    const uint64_t n = n_keys(first_bag, end_bag);
    const uint64_t room = room_of(thread, first_bag);
    const void** const sources = sources_.data() + room;
    kernels_.find_rows(c, part_.keys + part_.offsets[first_bag], n, sources, words_.data() + room);
    pool(thread, first_bag, end_bag, sources, format_);
    std::atomic_thread_fence(std::memory_order_acquire);
    return write_count_.load(std::memory_order_relaxed) == writes_before;
  }

  void pool_copies(uint32_t thread, uint64_t first_bag, uint64_t end_bag) {
    const uint64_t n = n_keys(first_bag, end_bag);
    const uint64_t room = room_of(thread, first_bag);
    float* const copies = copies_.data() + room * format_.dim;
    FindArgs args = {};
    args.keys = part_.keys + part_.offsets[first_bag];
    args.rows = copies;
    args.row_dtype = Dtype::kF32;
    args.default_row = default_row_;
    Reader(storage_, write_count_, format_, kernels_, args).run(0, n);
    const void** const sources = sources_.data() + room;
    for (uint64_t i = 0; i < n; ++i) sources[i] = copies + i * format_.dim;
    pool(thread, first_bag, end_bag, sources, RowFormat{format_.dim, Dtype::kF32, false, 0});
  }

  // sources: of the keys of these bags
  void pool(uint32_t thread, uint64_t first_bag, uint64_t end_bag, const void* const* sources,
            const RowFormat& format) {
    float* const scratch = scratch_.data() + thread * pool_scratch_floats(format_.dim);
    pool_bags(kernels_, format, part_, first_bag, end_bag, sources - part_.offsets[first_bag],
              static_cast<uint64_t>(part_.offsets[end_bag]), scratch);
  }

  static uint64_t longest_bag(const es_part& part) {
    int64_t longest = 0;
    for (uint64_t bag = 0; bag < part.n_bags; ++bag)
      longest = std::max(longest, part.offsets[bag + 1] - part.offsets[bag]);
    return static_cast<uint64_t>(longest);
  }

  const Storage& storage_;
  const std::atomic<uint64_t>& write_count_;
  const RowFormat& format_;
  const Kernels& kernels_;
  const void* const default_row_;
  const es_part& part_;
  const uint32_t n_threads_;
  const bool has_long_bags_;  // longer than a chunk
  Scratch<float> scratch_;
  Scratch<const void*> sources_;
  Scratch<uint32_t> words_;
  Scratch<float> copies_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_POOLED_FIND_H_
