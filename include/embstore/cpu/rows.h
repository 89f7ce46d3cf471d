// The rows of a table: values, slots and meta records by row id, and which ids are free.
//
// 1. A live row's bit is set; a freed row's id goes to the free list and is the next to be given out.
// 2. reserve() may throw and changes nothing but capacity; take() and release() cannot fail after it.
// 3. Addresses are stable (arena.h), so readers may copy a row whose id they have just read from the index.
// 4. Whoever changes the values of a row that the index names holds its version word odd meanwhile; births need not.
// Belongs to the writer, but for values() and versions, which readers use too.
#ifndef EMBSTORE_CPU_ROWS_H_
#define EMBSTORE_CPU_ROWS_H_

#include <memory>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace embstore::cpu {

// Calls visit(row) for each bit of [first, end) that is set; row r is bit r % 64 of word r / 64.
template <class Visit>
void for_each_bit(const uint64_t* words, uint64_t first, uint64_t end, const Visit& visit) {
  for (uint64_t base = first / 64 * 64; base < end; base += 64) {
    uint64_t bits = words[base / 64];
    if (base < first) bits &= ~uint64_t{0} << (first - base);
    for (; bits != 0; bits &= bits - 1) {
      const uint64_t row = base + static_cast<uint64_t>(__builtin_ctzll(bits));
      if (row >= end) return;
      visit(static_cast<uint32_t>(row));
    }
  }
}

class Rows {
 public:
  explicit Rows(const RowFormat& format) : values_(stride_of(value_bytes(format))), meta_(sizeof(Meta)) {
    versions_ = Region::reserve(kVersions * sizeof(uint32_t));
    if (format.n_slots > 0) slots_ = std::make_unique<Arena>(stride_of(format.n_slots * sizeof(float)));
  }

  char* values(uint32_t row) const { return values_.row(row); }
  float* slots(uint32_t row) const { return slots_ ? reinterpret_cast<float*>(slots_->row(row)) : nullptr; }
  Meta* meta(uint32_t row) const { return reinterpret_cast<Meta*>(meta_.row(row)); }

  Slab values_slab() const { return values_.slab(); }
  Slab slots_slab() const { return slots_ ? slots_->slab() : Slab{}; }
  Slab meta_slab() const { return meta_.slab(); }
  uint32_t* versions() const { return reinterpret_cast<uint32_t*>(versions_.data()); }  // (kVersions,)
  uint32_t* version(uint32_t row) const { return versions() + version_of(row); }

  uint64_t n_live() const { return n_live_; }
  uint64_t n_ids() const { return n_ids_; }                   // ids ever given out: scans run over [0, n_ids)
  const uint64_t* live_bits() const { return live_.data(); }  // as for_each_bit reads them
  bool is_live(uint32_t row) const { return (live_[row / 64] >> (row % 64) & 1) != 0; }

  // Room for n_new more rows.
  void reserve(uint64_t n_new) {
    const uint64_t n = ids_after(n_new);
    if (n > kMaxRows) throw std::bad_alloc();
    values_.grow_to(n);
    if (slots_) slots_->grow_to(n);
    meta_.grow_to(n);
    if (n <= live_.size() * 64) return;
    const uint64_t roomy = std::max(n, live_.size() * 64 * 3 / 2);
    free_.reserve(round_up(roomy, 64));
    live_.resize(round_up(roomy, 64) / 64);
  }

  void prefault(uint64_t n_rows) {
    if (n_rows > n_ids_) reserve(n_rows - n_ids_ + free_.size());
    values_.prefault(n_rows);
    if (slots_) slots_->prefault(n_rows);
    meta_.prefault(n_rows);
  }

  uint32_t take() {
    uint32_t row;
    if (free_.empty()) {
      row = static_cast<uint32_t>(n_ids_++);
      values_.note_used(n_ids_);
      if (slots_) slots_->note_used(n_ids_);
      meta_.note_used(n_ids_);
    } else {
      row = free_.back();
      free_.pop_back();
    }
    live_[row / 64] |= uint64_t{1} << (row % 64);
    ++n_live_;
    return row;
  }

  void release(uint32_t row) {
    live_[row / 64] &= ~(uint64_t{1} << (row % 64));
    free_.push_back(row);
    --n_live_;
  }

  uint64_t value_bytes_held() const { return values_.bytes(); }
  uint64_t slot_bytes_held() const { return slots_ ? slots_->bytes() : 0; }
  uint64_t meta_bytes_held() const {
    return meta_.bytes() + live_.capacity() * 8 + free_.size() * 4 + version_bytes(n_ids_);
  }

  // Bytes held at most once n_new more rows are in, or were in: the list of free ids may come to name them all.
  uint64_t bytes_after(uint64_t n_new) const {
    const uint64_t n = ids_after(n_new);
    return values_.bytes_for(n) + (slots_ ? slots_->bytes_for(n) : 0) + meta_.bytes_for(n) +
           std::max<uint64_t>(live_.capacity() * 8, n * 3 / 16) + n * 4 + version_bytes(n);
  }

  // Calls visit(row, meta) for each live row with an id in [first, end).
  template <class Visit>
  void for_each(uint64_t first, uint64_t end, const Visit& visit) const {
    for_each_bit(live_.data(), first, end, [&](uint32_t row) { visit(row, meta(row)); });
  }

 private:
  uint64_t ids_after(uint64_t n_new) const { return n_ids_ + (n_new > free_.size() ? n_new - free_.size() : 0); }

  static uint64_t version_bytes(uint64_t n_rows) {
    return round_up(std::min<uint64_t>(n_rows, kVersions) * sizeof(uint32_t), kSmallPage);
  }

  Arena values_;
  std::unique_ptr<Arena> slots_;  // null without slots; apart from the values: docs/decisions/002
  Arena meta_;
  Region versions_;
  std::vector<uint64_t> live_;
  std::vector<uint32_t> free_;
  uint64_t n_ids_ = 0;
  uint64_t n_live_ = 0;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_ROWS_H_
