// Reading: keys to rows on any number of threads, without a lock, while one writer may work.
//
// 1. A chunk of keys is probed, then its rows are copied, then what a writer changed meanwhile is read again.
// 2. Each row is whole, from before or after a write; a key that is present throughout is always found.
// 3. Nothing of the table is written.
#ifndef EMBSTORE_CPU_GATHER_H_
#define EMBSTORE_CPU_GATHER_H_

#include <atomic>
#include <vector>

#include "config.h"
#include "index.h"
#include "rows.h"

namespace embstore::cpu {

struct Storage {  // what clear() exchanges whole
  Storage(HashSeed seed, const RowFormat& format) : index(seed), rows(format) {}
  Index index;
  Rows rows;
};

struct FindArgs {
  const int64_t* keys;
  void* rows;  // may be null
  Dtype row_dtype;
  const void* default_row;  // in the table's dtype
  uint8_t* found;           // the last three may be null
  uint32_t* freq;
  int64_t* step;
  int64_t step_base;
};

class Reader {
 public:
  Reader(const Storage& storage, const std::atomic<uint64_t>& write_count, const RowFormat& format,
         const Kernels& kernels, const FindArgs& args)
      : storage_(storage), write_count_(write_count), format_(format), kernels_(kernels), args_(args) {}

  // Positions [first, end) of the batch; how many of them were found.
  uint64_t run(uint64_t first, uint64_t end) {
    uint64_t n_found = 0;
    for (; first < end; first += kChunk) n_found += run_chunk(first, std::min(end, first + kChunk));
    return n_found;
  }

  static constexpr uint64_t kChunk = 1024;

 private:
  uint64_t run_chunk(uint64_t first, uint64_t end);
  void probe_chunk(uint64_t first, uint64_t n, const View& view);
  bool read_again(uint64_t position);
  void put_meta(uint64_t position, const SharedHit& hit);
  char* out_row(uint64_t position) const {
    return static_cast<char*>(args_.rows) + position * format_.dim * size_of(args_.row_dtype);
  }
  const void* source_of(const SharedHit& hit) const {
    return is_row_word(hit.word) ? storage_.rows.values(row_of_word(hit.word)) : args_.default_row;
  }

  const Storage& storage_;
  const std::atomic<uint64_t>& write_count_;  // odd while a writer commits
  const RowFormat& format_;
  const Kernels& kernels_;
  const FindArgs& args_;
  SharedHit hits_[kChunk];
  const void* sources_[kChunk];
};

inline uint64_t Reader::run_chunk(uint64_t first, uint64_t end) {
  const uint64_t n = end - first;
  const uint64_t writes_before = write_count_.load(std::memory_order_acquire);
  uint64_t view_version;
  const View view = storage_.index.shared_view(&view_version);
  probe_chunk(first, n, view);
  if (args_.rows != nullptr) kernels_.copy_rows(sources_, n, format_, args_.row_dtype, out_row(first));
  for (uint64_t i = 0; i < n; ++i) put_meta(first + i, hits_[i]);
  std::atomic_thread_fence(std::memory_order_acquire);
  const bool is_quiet = (writes_before & 1) == 0 && write_count_.load(std::memory_order_relaxed) == writes_before;
  const bool has_same_view = storage_.index.view_version() == view_version;
  uint64_t n_found = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const SharedHit& hit = hits_[i];
    bool is_found = is_row_word(hit.word);
    if (!is_quiet && (!has_same_view || hit.bucket == nullptr || !is_unchanged(&hit.bucket->control, hit.version)))
      is_found = read_again(first + i);
    n_found += is_found;
    if (args_.found != nullptr) args_.found[first + i] = is_found;
  }
  return n_found;
}

inline void Reader::probe_chunk(uint64_t first, uint64_t n, const View& view) {
  constexpr uint64_t kAhead = 32;
  const Bucket* homes[kChunk];
  for (uint64_t i = 0; i < n + kAhead; ++i) {
    if (i < n) {
      homes[i] = view.home(storage_.index.hash(static_cast<uint64_t>(args_.keys[first + i])));
      __builtin_prefetch(homes[i]);
    }
    if (i < kAhead) continue;
    const uint64_t at = i - kAhead;
    hits_[at] = probe_shared<false>(homes[at], static_cast<uint64_t>(args_.keys[first + at]));
    sources_[at] = source_of(hits_[at]);
  }
}

// One key with every version checked, until a row was read whole.
inline bool Reader::read_again(uint64_t position) {
  const uint64_t key = static_cast<uint64_t>(args_.keys[position]);
  for (;;) {
    uint64_t view_version;
    const View view = storage_.index.shared_view(&view_version);
    const SharedHit hit = probe_shared<true>(view.home(storage_.index.hash(key)), key);
    const void* source = source_of(hit);
    if (args_.rows != nullptr) kernels_.copy_rows(&source, 1, format_, args_.row_dtype, out_row(position));
    put_meta(position, hit);
    if (hit.bucket != nullptr && !is_unchanged(&hit.bucket->control, hit.version)) continue;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (storage_.index.view_version() != view_version) continue;
    return is_row_word(hit.word);
  }
}

inline void Reader::put_meta(uint64_t position, const SharedHit& hit) {
  if (args_.freq == nullptr && args_.step == nullptr) return;
  const bool is_row = is_row_word(hit.word);
  const Meta* meta = is_row ? storage_.rows.meta(row_of_word(hit.word)) : nullptr;
  if (args_.freq != nullptr) args_.freq[position] = is_row ? __atomic_load_n(&meta->freq, __ATOMIC_RELAXED) : 0;
  if (args_.step != nullptr)
    args_.step[position] = is_row ? args_.step_base + __atomic_load_n(&meta->step, __ATOMIC_RELAXED) : -1;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_GATHER_H_
