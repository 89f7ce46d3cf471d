// Rows by (partition, key), the order of files: all of them grouped, and sorted for what is asked.
//
// 1. An order is good until the next write; the table says how many there were.
// 2. How many threads work never changes it: keys are unique.
// Belongs to the writer.
#ifndef EMBSTORE_CPU_ORDER_H_
#define EMBSTORE_CPU_ORDER_H_

#include <algorithm>
#include <atomic>
#include <vector>

#include "../core/hash.h"
#include "rows.h"
#include "thread_pool.h"
#include "update.h"

namespace embstore::cpu {

struct KeyedRow {
  uint64_t key;  // its sign bit turned over: compares as the signed key does
  uint32_t row;
};

constexpr uint64_t kSignBit = uint64_t{1} << 63;

// Sorts n rows by key, byte by byte from the lowest; bytes that all keys share are passed over. Returns where they are:
// in `rows` or in `spare`.
inline KeyedRow* sort_by_key(KeyedRow* rows, KeyedRow* spare, uint64_t n) {
  constexpr uint32_t kBytes = 8;
  constexpr uint64_t kFew = 256;
  if (n <= kFew) {
    std::sort(rows, rows + n, [](const KeyedRow& a, const KeyedRow& b) { return a.key < b.key; });
    return rows;
  }
  uint32_t places[kBytes][256] = {};
  for (uint64_t i = 0; i < n; ++i)
    for (uint32_t byte = 0; byte < kBytes; ++byte) ++places[byte][rows[i].key >> (8 * byte) & 0xFF];
  for (uint32_t byte = 0; byte < kBytes; ++byte) {
    if (places[byte][rows[0].key >> (8 * byte) & 0xFF] == n) continue;
    uint32_t at = 0;
    for (uint32_t& place : places[byte]) at += std::exchange(place, at);
    for (uint64_t i = 0; i < n; ++i) spare[places[byte][rows[i].key >> (8 * byte) & 0xFF]++] = rows[i];
    std::swap(rows, spare);
  }
  return rows;
}

// The live rows of a table whose writers wait.
struct LiveRows {
  const Rows& rows;
  uint64_t n_ids() const { return rows.n_ids(); }
  uint64_t n_rows() const { return rows.n_live(); }
  void prefetch(uint32_t row) const { __builtin_prefetch(rows.meta(row)); }
  uint64_t key(uint32_t row) const { return rows.meta(row)->key; }
  template <class Visit>
  void for_each(uint64_t first, uint64_t end, const Visit& visit) const {
    rows.for_each(first, end, [&](uint32_t row, const Meta* meta) { visit(row, meta->key); });
  }
};

// Source: a set of rows, with the members of LiveRows.
class ExportOrder {
 public:
  // Groups all live rows by partition, unless that is done.
  void prepare(const LiveRows& rows, uint64_t write_count) {
    if (is_ready_ && write_count == write_count_) return;
    group(rows, static_cast<uint32_t>(ThreadPool::instance().n_threads()));
    write_count_ = write_count;
    is_ready_ = true;
  }

  // Groups rows by partition, on at most n_threads.
  template <class Source>
  void group(const Source& rows, uint32_t n_threads) {
    is_ready_ = false;
    const uint64_t n_ids = rows.n_ids();
    const uint32_t n_parts = std::min(n_threads, n_parts_for(n_ids));
    std::vector<uint32_t> places(uint64_t{n_parts} * kPartitions);  // of each part's next row of a partition
    rows_.resize(rows.n_rows());
    const auto for_part = [&](uint32_t part, const auto& visit) {
      uint32_t* const own = &places[uint64_t{part} * kPartitions];
      rows.for_each(n_ids * part / n_parts, n_ids * (part + 1) / n_parts,
                    [&](uint32_t row, uint64_t key) { visit(row, &own[partition_of(key)]); });
    };
    ThreadPool::instance().run(n_parts,
                               [&](uint32_t part) { for_part(part, [](uint32_t, uint32_t* place) { ++*place; }); });
    uint32_t at = 0;
    for (uint32_t p = 0; p < kPartitions; ++p) {
      offsets_[p] = at;
      for (uint32_t part = 0; part < n_parts; ++part) at += std::exchange(places[uint64_t{part} * kPartitions + p], at);
    }
    offsets_[kPartitions] = at;
    ThreadPool::instance().run(n_parts, [&](uint32_t part) {
      for_part(part, [this](uint32_t row, uint32_t* place) { rows_[(*place)++] = row; });
    });
  }

  // Sorts the rows of each of these partitions by key, on at most n_threads.
  template <class Source>
  void sort(const Source& rows, uint32_t first, uint32_t last, uint32_t n_threads) {
    uint64_t most = 0;
    for (uint32_t p = first; p <= last; ++p) most = std::max(most, count(p));
    const uint32_t n_parts = std::min({n_threads, n_parts_for(offsets_[last + 1] - offsets_[first]), last - first + 1});
    scratch_.resize(2 * most * n_parts);
    std::atomic<uint32_t> next{first};
    ThreadPool::instance().run(n_parts, [&](uint32_t part) {
      KeyedRow* const own = scratch_.data() + 2 * most * part;
      for (uint32_t p = next.fetch_add(1); p <= last; p = next.fetch_add(1))
        sort_partition(rows, rows_.data() + offsets_[p], count(p), own, own + most);
    });
  }

  void drop() {
    rows_ = Scratch<uint32_t>();
    scratch_ = Scratch<KeyedRow>();
    is_ready_ = false;
  }

  uint64_t count(uint32_t partition) const { return offsets_[partition + 1] - offsets_[partition]; }
  uint64_t offset(uint32_t partition) const { return offsets_[partition]; }
  const uint32_t* begin(uint32_t partition) const { return at(offsets_[partition]); }
  const uint32_t* at(uint64_t place) const { return rows_.data() + place; }
  uint64_t bytes() const { return rows_.bytes() + scratch_.bytes(); }

 private:
  template <class Source>
  static void sort_partition(const Source& rows, uint32_t* ids, uint64_t n, KeyedRow* keyed, KeyedRow* spare) {
    constexpr uint64_t kAhead = 32;
    for (uint64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) rows.prefetch(ids[i + kAhead]);
      keyed[i] = KeyedRow{rows.key(ids[i]) ^ kSignBit, ids[i]};
    }
    const KeyedRow* const sorted = sort_by_key(keyed, spare, n);
    for (uint64_t i = 0; i < n; ++i) ids[i] = sorted[i].row;
  }

  bool is_ready_ = false;
  uint64_t write_count_ = 0;
  uint32_t offsets_[kPartitions + 1] = {};
  Scratch<uint32_t> rows_;
  Scratch<KeyedRow> scratch_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_ORDER_H_
