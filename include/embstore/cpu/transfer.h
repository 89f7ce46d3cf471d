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

// Live row ids grouped by partition; good until the next write.
class ExportOrder {
 public:
  void prepare(const Rows& rows, uint64_t write_count) {
    if (is_ready_ && write_count == write_count_) return;
    is_ready_ = false;
    std::fill(std::begin(offsets_), std::end(offsets_), 0);
    rows.for_each(0, rows.n_ids(), [&](uint32_t, const Meta* meta) { ++offsets_[partition_of(meta->key) + 1]; });
    for (uint32_t p = 0; p < kPartitions; ++p) offsets_[p + 1] += offsets_[p];
    rows_.resize(rows.n_live());
    std::vector<uint64_t> next(offsets_, offsets_ + kPartitions);
    rows.for_each(0, rows.n_ids(),
                  [&](uint32_t row, const Meta* meta) { rows_[next[partition_of(meta->key)]++] = row; });
    write_count_ = write_count;
    is_ready_ = true;
  }

  void drop() {
    std::vector<uint32_t>().swap(rows_);
    is_ready_ = false;
  }
  uint64_t count(uint32_t partition) const { return offsets_[partition + 1] - offsets_[partition]; }
  const uint32_t* begin(uint32_t partition) const { return rows_.data() + offsets_[partition]; }
  uint64_t bytes() const { return rows_.capacity() * sizeof(uint32_t); }

 private:
  bool is_ready_ = false;
  uint64_t write_count_ = 0;
  uint64_t offsets_[kPartitions + 1] = {};
  std::vector<uint32_t> rows_;
};

// Copies whole rows to arrays, from position `at` on.
class RowWriter {
 public:
  RowWriter(const Rows& rows, const Config& config, int64_t step_base, const RowArrays& out)
      : rows_(rows), config_(config), step_base_(step_base), out_(out) {}

  void put(const std::vector<std::pair<int64_t, uint32_t>>& by_key, uint64_t at) const {
    const RowFormat& f = config_.format;
    const uint64_t n_bytes = value_bytes(f);
    for (uint64_t i = 0; i < by_key.size(); ++i) {
      if (i + kPrefetchRows < by_key.size())
        prefetch_row(rows_.values(by_key[i + kPrefetchRows].second), static_cast<uint32_t>(n_bytes));
      const uint32_t row = by_key[i].second;
      const Meta* meta = rows_.meta(row);
      out_.keys[at + i] = by_key[i].first;
      if (out_.values != nullptr)
        std::memcpy(static_cast<char*>(out_.values) + (at + i) * n_bytes, rows_.values(row), n_bytes);
      if (out_.slots != nullptr && f.n_slots > 0)
        std::memcpy(out_.slots + (at + i) * f.n_slots, rows_.slots(row), f.n_slots * sizeof(float));
      if (out_.freq != nullptr) out_.freq[at + i] = meta->freq;
      if (out_.step != nullptr) out_.step[at + i] = step_base_ + meta->step;
    }
  }

 private:
  const Rows& rows_;
  const Config& config_;
  int64_t step_base_;
  RowArrays out_;
};

// Rows that left the table and that somebody wants to see.
class EvictedRows {
 public:
  uint64_t size() const { return keys_.size(); }

  void append(const Rows& rows, const Config& config, int64_t step_base, const std::vector<Victim>& victims) {
    const uint64_t first = size();
    const uint64_t n = first + victims.size();
    std::vector<std::pair<int64_t, uint32_t>> by_key;
    by_key.reserve(victims.size());
    reserve(n, config.format);  // the last that may fail
    resize(n, config.format);
    for (const Victim& v : victims) by_key.emplace_back(v.key, v.row);
    RowWriter(rows, config, step_base,
              RowArrays{keys_.data(), values_.data(), slots_.data(), freq_.data(), step_.data()})
        .put(by_key, first);
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
  template <class T>
  static void reserve_amortized(std::vector<T>& v, uint64_t n) {
    if (v.capacity() < n) v.reserve(std::max<uint64_t>(n, v.capacity() * 2));
  }

  void reserve(uint64_t n, const RowFormat& f) {
    reserve_amortized(keys_, n);
    reserve_amortized(values_, n * value_bytes(f));
    reserve_amortized(slots_, n * f.n_slots);
    reserve_amortized(freq_, n);
    reserve_amortized(step_, n);
  }

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

// Which rows were written and which keys removed since the last reset; keeps nothing unless it is on.
class ChangeLog {
 public:
  explicit ChangeLog(bool is_on) : is_on_(is_on) {}

  bool is_on() const { return is_on_; }

  // Before a commit: marks for rows [0, n_ids) and n_removed more removals.
  void reserve(uint64_t n_ids, uint64_t n_removed) {
    if (!is_on_) return;
    if (is_dirty_.size() < n_ids) is_dirty_.resize(std::max<uint64_t>(n_ids, is_dirty_.size() * 3 / 2));
    const uint64_t n = removed_.size() + n_removed;
    if (removed_.capacity() < n) removed_.reserve(std::max(n, removed_.capacity() * 2));
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
  uint64_t bytes() const { return is_dirty_.capacity() + removed_.capacity() * sizeof(int64_t); }

 private:
  bool is_on_;
  std::vector<uint8_t> is_dirty_;
  std::vector<int64_t> removed_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_TRANSFER_H_
