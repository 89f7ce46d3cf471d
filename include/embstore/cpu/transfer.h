// Rows in and out: complete records by (partition, key), and the log of what changed.
#ifndef EMBSTORE_CPU_TRANSFER_H_
#define EMBSTORE_CPU_TRANSFER_H_

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/hash.h"
#include "config.h"
#include "rows.h"

namespace embstore::cpu {

struct RowArrays {  // any but keys may be null
  int64_t* keys;
  void* values;
  float* slots;
  uint32_t* freq;
  int64_t* step;
};

// Where rows are copied from.
struct RowSource {
  const Rows& rows;
  const Kernels& kernels;
  const RowFormat& format;
  int64_t step_base;
};

// Copies whole rows to positions [0, n) of the arrays; past the caches if is_streamed.
inline void copy_whole_rows(const RowSource& from, const uint32_t* ids, uint64_t n, bool is_streamed,
                            const RowArrays& out) {
  constexpr uint64_t kBlock = 512;
  constexpr uint64_t kAhead = 32;
  const RowFormat& f = from.format;
  const RowFormat slots = {f.n_slots, Dtype::kF32, false, 0};
  const bool has_slots = out.slots != nullptr && f.n_slots > 0;
  const void* sources[kBlock];
  for (uint64_t first = 0; first < n; first += kBlock) {
    const uint64_t n_block = std::min(n - first, kBlock);
    for (uint64_t i = first; i < first + n_block; ++i) {
      if (i + kAhead < n) __builtin_prefetch(from.rows.meta(ids[i + kAhead]));
      const Meta* meta = from.rows.meta(ids[i]);
      out.keys[i] = static_cast<int64_t>(meta->key);
      if (out.freq != nullptr) out.freq[i] = meta->freq;
      if (out.step != nullptr) out.step[i] = from.step_base + meta->step;
      sources[i - first] = from.rows.values(ids[i]);
    }
    if (out.values != nullptr)
      from.kernels.copy_rows(sources, n_block, f, f.dtype, is_streamed,
                             static_cast<char*>(out.values) + first * value_bytes(f));
    for (uint64_t i = 0; has_slots && i < n_block; ++i) sources[i] = from.rows.slots(ids[first + i]);
    if (has_slots)
      from.kernels.copy_rows(sources, n_block, slots, Dtype::kF32, is_streamed, out.slots + first * f.n_slots);
  }
}

// The arrays from position `at` on.
inline RowArrays arrays_from(const RowArrays& a, uint64_t at, const RowFormat& f) {
  return RowArrays{a.keys + at, a.values != nullptr ? static_cast<char*>(a.values) + at * value_bytes(f) : nullptr,
                   a.slots != nullptr ? a.slots + at * f.n_slots : nullptr, a.freq != nullptr ? a.freq + at : nullptr,
                   a.step != nullptr ? a.step + at : nullptr};
}

template <class T>
void reserve_amortized(std::vector<T>& v, uint64_t n) {
  if (v.capacity() < n) v.reserve(std::max<uint64_t>(n, v.capacity() * 2));
}

// Rows that left the table and that somebody wants to see.
class EvictedRows {
 public:
  uint64_t size() const { return keys_.size(); }

  // Room for n more.
  void reserve(uint64_t n, const RowFormat& f) {
    n += size();
    reserve_amortized(keys_, n);
    reserve_amortized(values_, n * value_bytes(f));
    reserve_amortized(slots_, n * f.n_slots);
    reserve_amortized(freq_, n);
    reserve_amortized(step_, n);
  }

  void append(const RowSource& from, const uint32_t* ids, uint64_t n) {
    const uint64_t first = size();
    resize(first + n, from.format);
    const RowArrays all = {keys_.data(), values_.data(), slots_.data(), freq_.data(), step_.data()};
    copy_whole_rows(from, ids, n, false, arrays_from(all, first, from.format));
  }

  // All of them by key; the buffer is empty afterwards.
  void take(const RowFormat& f, const RowArrays& out) {
    std::vector<uint64_t> order(size());
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](uint64_t a, uint64_t b) { return keys_[a] < keys_[b]; });
    const uint64_t n_bytes = value_bytes(f);
    for (uint64_t i = 0; i < order.size(); ++i) {
      const uint64_t from = order[i];
      out.keys[i] = keys_[from];
      std::memcpy(static_cast<char*>(out.values) + i * n_bytes, values_.data() + from * n_bytes, n_bytes);
      if (f.n_slots > 0)
        std::memcpy(out.slots + i * f.n_slots, slots_.data() + from * f.n_slots, f.n_slots * sizeof(float));
      out.freq[i] = freq_[from];
      out.step[i] = step_[from];
    }
    resize(0, f);
  }

 private:
  void resize(uint64_t n, const RowFormat& f) {
    keys_.resize(n);
    values_.resize(n * value_bytes(f));
    slots_.resize(n * f.n_slots);
    freq_.resize(n);
    step_.resize(n);
  }

  std::vector<int64_t> keys_;
  std::vector<char> values_;
  std::vector<float> slots_;
  std::vector<uint32_t> freq_;
  std::vector<int64_t> step_;
};

// A change log that ended: its rows, a bit each, and the keys that were removed.
struct TakenChanges {
  std::vector<uint64_t> written;
  std::vector<int64_t> removed;
};

// Which rows were written and which keys removed since the last reset; keeps nothing unless it is on.
class ChangeLog {
 public:
  explicit ChangeLog(bool is_on) : is_on_(is_on) {}

  bool is_on() const { return is_on_; }

  // Before a commit: marks for rows [0, n_ids) and n_removed more removals.
  void reserve(uint64_t n_ids, uint64_t n_removed) {
    if (!is_on_) return;
    if (is_dirty_.size() < n_ids) is_dirty_.resize(std::max<uint64_t>(n_ids, is_dirty_.size() * 3 / 2));
    reserve_amortized(removed_, removed_.size() + n_removed);
  }

  void note_written(uint32_t row) {
    if (is_on_) is_dirty_[row] = 1;
  }
  void note_removed(uint32_t row, int64_t key) {
    if (!is_on_) return;
    is_dirty_[row] = 0;
    removed_.push_back(key);
  }
  bool is_dirty(uint32_t row) const { return row < is_dirty_.size() && is_dirty_[row] != 0; }
  const std::vector<int64_t>& removed() const { return removed_; }
  void reset() {
    std::fill(is_dirty_.begin(), is_dirty_.end(), uint8_t{0});
    std::vector<int64_t>().swap(removed_);
  }
  // Ends the log and begins a new one; rows are those below n_ids. May throw, and has changed nothing then.
  TakenChanges take(uint64_t n_ids) {
    TakenChanges taken;
    if (!is_on_) return taken;
    taken.written.resize((n_ids + 63) / 64);
    const uint64_t n = std::min<uint64_t>(n_ids, is_dirty_.size());
    for (uint64_t row = 0; row < n; ++row) taken.written[row / 64] |= uint64_t{is_dirty_[row]} << (row % 64);
    std::fill(is_dirty_.begin(), is_dirty_.end(), uint8_t{0});
    taken.removed.swap(removed_);
    return taken;
  }

  // Joins what was taken with what came since. Rows have the ids they had unless the table was cleared.
  void put_back(const TakenChanges& taken, bool has_rows) {
    if (!is_on_) return;
    removed_.insert(removed_.begin(), taken.removed.begin(), taken.removed.end());
    for (uint64_t row = 0; has_rows && row < taken.written.size() * 64 && row < is_dirty_.size(); ++row)
      is_dirty_[row] |= static_cast<uint8_t>(taken.written[row / 64] >> (row % 64) & 1);
  }
  uint64_t bytes() const { return is_dirty_.capacity() + removed_.capacity() * sizeof(int64_t); }

 private:
  bool is_on_;
  std::vector<uint8_t> is_dirty_;
  std::vector<int64_t> removed_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_TRANSFER_H_
