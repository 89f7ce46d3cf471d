// Reading: keys to rows on any number of threads, without a lock, while one writer may work.
//
// 1. A chunk of keys is probed, then its rows are copied, then what a writer changed meanwhile is read again.
// 2. Each row is whole, from before or after a write; a key that is present throughout is always found.
// 3. Nothing of the table is written.
#ifndef EMBSTORE_CPU_GATHER_H_
#define EMBSTORE_CPU_GATHER_H_

#include <unistd.h>

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
  bool is_streamed;  // rows go past the caches
};

// Outputs beyond this go past the caches: their first lines would be gone before the last are written.
inline uint64_t streamed_from() {
  static const uint64_t n_bytes = [] {
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return l3 > 0 ? static_cast<uint64_t>(l3) / 2 : uint64_t{16} << 20;
  }();
  return n_bytes;
}

class Reader {
 public:
  Reader(const Storage& storage, const std::atomic<uint64_t>& write_count, const RowFormat& format,
         const Kernels& kernels, const FindArgs& args)
      : storage_(storage), write_count_(write_count), format_(format), kernels_(kernels), args_(args) {}

  // Positions [first, end) of the batch; how many of them were found.
  uint64_t run(uint64_t first, uint64_t end) {
    uint64_t n_found = 0;
    for (; first < end; first += kChunk) {
      const uint64_t n = std::min(end - first, kChunk);
      uint64_t n_chunk = 0;
      if (!run_quiet(first, n, &n_chunk)) n_chunk = run_beside_writer(first, n);
      n_found += n_chunk;
    }
    return n_found;
  }

#ifndef EMB_FIND_CHUNK  // keys that are probed before the rows of any are copied
#define EMB_FIND_CHUNK 2048
#endif
  static constexpr uint64_t kChunk = EMB_FIND_CHUNK;

 private:
  bool run_quiet(uint64_t first, uint64_t n, uint64_t* n_found);
  uint64_t run_beside_writer(uint64_t first, uint64_t n);
  FindContext context(uint64_t* view_version) const {
    return FindContext{storage_.index.shared_view(view_version), storage_.index.hash_keys(),
                       storage_.rows.values_slab(), storage_.rows.versions(), args_.default_row};
  }
  void put_rows(uint64_t first, uint64_t n);
  bool read_again(uint64_t position);
  bool is_unchanged_hit(const ReadVersions& read) const;
  char* out_row(uint64_t position) const {
    return static_cast<char*>(args_.rows) + position * format_.dim * size_of(args_.row_dtype);
  }

  const Storage& storage_;
  const std::atomic<uint64_t>& write_count_;  // odd while a writer commits
  const RowFormat& format_;
  const Kernels& kernels_;
  const FindArgs& args_;
  const void* sources_[kChunk];
  uint32_t words_[kChunk];
};

// Without versions: good if no writer worked before, while and after. False, and no result, if one did.
inline bool Reader::run_quiet(uint64_t first, uint64_t n, uint64_t* n_found) {
  const uint64_t writes_before = write_count_.load(std::memory_order_acquire);
  if ((writes_before & 1) != 0) return false;
  uint64_t view_version;
  const FindContext c = context(&view_version);
  *n_found = kernels_.find_rows(c, args_.keys + first, n, sources_, words_);
  put_rows(first, n);
  std::atomic_thread_fence(std::memory_order_acquire);
  return write_count_.load(std::memory_order_relaxed) == writes_before;
}

inline uint64_t Reader::run_beside_writer(uint64_t first, uint64_t n) {
  ReadVersions versions[kChunk];
  uint64_t view_version;
  const FindContext c = context(&view_version);
  kernels_.find_rows_versioned(c, args_.keys + first, n, sources_, words_, versions);
  put_rows(first, n);
  std::atomic_thread_fence(std::memory_order_acquire);
  const bool has_same_view = storage_.index.view_version() == view_version;
  uint64_t n_found = 0;
  for (uint64_t i = 0; i < n; ++i) {
    bool is_found = is_row_word(words_[i]);
    if (!has_same_view || !is_unchanged_hit(versions[i])) is_found = read_again(first + i);
    n_found += is_found;
  }
  return n_found;
}

// All outputs of positions [first, first + n), by sources_ and words_.
inline void Reader::put_rows(uint64_t first, uint64_t n) {
  if (args_.rows != nullptr)
    kernels_.copy_rows(sources_, n, format_, args_.row_dtype, args_.is_streamed, out_row(first));
  for (uint64_t i = 0; args_.found != nullptr && i < n; ++i) args_.found[first + i] = is_row_word(words_[i]);
  if (args_.freq == nullptr && args_.step == nullptr) return;
  for (uint64_t i = 0; i < n; ++i) {
    const bool is_row = is_row_word(words_[i]);
    const Meta* meta = is_row ? storage_.rows.meta(row_of_word(words_[i])) : nullptr;
    if (args_.freq != nullptr) args_.freq[first + i] = is_row ? __atomic_load_n(&meta->freq, __ATOMIC_RELAXED) : 0;
    if (args_.step != nullptr)
      args_.step[first + i] = is_row ? args_.step_base + __atomic_load_n(&meta->step, __ATOMIC_RELAXED) : -1;
  }
}

// A miss is always doubtful: the key may have been moving.
inline bool Reader::is_unchanged_hit(const ReadVersions& read) const {
  if (read.hit.bucket == nullptr || !is_unchanged(&read.hit.bucket->control, read.hit.version)) return false;
  if (!is_row_word(read.hit.word)) return true;
  return is_unchanged(storage_.rows.version(row_of_word(read.hit.word)), read.row);
}

// One key with every version checked, until a row was read whole.
inline bool Reader::read_again(uint64_t position) {
  const uint64_t key = static_cast<uint64_t>(args_.keys[position]);
  for (;;) {
    uint64_t view_version;
    const FindContext c = context(&view_version);
    const SharedHit hit = probe_shared<true>(home_of(c.view, storage_.index.hash(key)), key);
    const bool is_row = is_row_word(hit.word);
    const ReadVersions versions = {hit, is_row ? begin_read(storage_.rows.version(row_of_word(hit.word))) : 0};
    sources_[0] = is_row ? storage_.rows.values(row_of_word(hit.word)) : args_.default_row;
    words_[0] = hit.word;
    put_rows(position, 1);
    if (hit.bucket != nullptr && !is_unchanged_hit(versions)) continue;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (storage_.index.view_version() != view_version) continue;
    return is_row;
  }
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_GATHER_H_
