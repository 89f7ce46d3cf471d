// Choosing rows to remove: a sequential scan of the records on all threads, norms where they decide, victims by
// (score, key).
#ifndef EMBSTORE_CPU_EVICT_H_
#define EMBSTORE_CPU_EVICT_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "config.h"
#include "kernels.h"
#include "rows.h"
#include "update.h"

namespace embstore::cpu {

// Keys that no eviction takes.
class Pins {
 public:
  void set(const int64_t* keys, uint64_t n) {
    std::vector<int64_t> sorted(keys, keys + n);
    std::sort(sorted.begin(), sorted.end());
    keys_.swap(sorted);
  }
  bool holds(int64_t key) const { return !keys_.empty() && std::binary_search(keys_.begin(), keys_.end(), key); }
  const std::vector<int64_t>& keys() const { return keys_; }

 private:
  std::vector<int64_t> keys_;
};

// When a bounded call must end.
class Deadline {
 public:
  explicit Deadline(double seconds) : is_bounded_(seconds > 0) {
    if (is_bounded_)
      end_ = std::chrono::steady_clock::now() +
             std::chrono::nanoseconds(static_cast<int64_t>(std::min(seconds, 1e9) * 1e9));
  }
  bool is_bounded() const { return is_bounded_; }
  // Whether work of so many nanoseconds would end too late.
  bool is_too_near(uint64_t ns) const {
    return is_bounded_ && std::chrono::steady_clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(ns)) >= end_;
  }

 private:
  bool is_bounded_;
  std::chrono::steady_clock::time_point end_;
};

// Rows of a range of ids, a bit each; the range begins at a multiple of 64.
class Selection {
 public:
  void begin(uint64_t first_row, uint64_t end_row) {
    first_ = first_row / kWordRows;
    bits_.resize((end_row + kWordRows - 1) / kWordRows - first_);
  }
  void end_at(uint64_t end_word) { bits_.truncate(end_word - first_); }

  uint64_t first_word() const { return first_; }
  uint64_t end_word() const { return first_ + bits_.size(); }
  uint64_t first_row() const { return first_word() * kWordRows; }
  uint64_t end_row() const { return end_word() * kWordRows; }
  uint64_t* word(uint64_t w) { return &bits_[w - first_]; }

  // Whether the row was in.
  bool drop(uint32_t row) {
    if (row < first_row() || row >= end_row()) return false;
    const uint64_t bit = uint64_t{1} << (row % kWordRows);
    const bool was_in = (*word(row / kWordRows) & bit) != 0;
    *word(row / kWordRows) &= ~bit;
    return was_in;
  }

  // Names up to `most` rows from `*at` on, in ascending order; moves `*at` to the next one, or to the end.
  uint64_t take(uint64_t* at, uint64_t most, uint32_t* out) const {
    uint64_t n = 0;
    for (uint64_t w = *at / kWordRows; w < end_word(); *at = ++w * kWordRows) {
      for (uint64_t bits = bits_[w - first_] & (~uint64_t{0} << (*at % kWordRows)); bits != 0; bits &= bits - 1) {
        *at = w * kWordRows + static_cast<uint64_t>(__builtin_ctzll(bits));
        if (n == most) return n;
        out[n++] = static_cast<uint32_t>(*at);
      }
    }
    return n;
  }

  template <class Visit>
  void for_each(const Visit& visit) const {
    uint32_t row;
    for (uint64_t at = first_row(); take(&at, 1, &row) != 0;) visit(row);
  }

  uint64_t bytes() const { return bits_.bytes(); }

 private:
  Scratch<uint64_t> bits_;
  uint64_t first_ = 0;
};

// Runs a program over the rows of a selection, which holds those that match afterwards: block by block, on all threads.
class EvictionScan {
 public:
  EvictionScan(const Rows& rows, const RowFormat& format, const Kernels& kernels, const std::vector<Predicate>& program,
               int64_t step, int64_t step_base)
      : rows_(rows), format_(format), kernels_(kernels), program_(program) {
    for (uint32_t i = 0; i < n_predicates(); ++i) tests_[i] = record_test(program[i], step, step_base);
  }

  static constexpr uint64_t kBlockRows = 4096;

  // Ends early, after a block at least, where the deadline leaves no more time than the removal of the rows takes.
  void run(const Deadline& deadline, Selection* selection) {
    const uint64_t first = selection->first_word();
    const uint64_t n_words = selection->end_word() - first;
    const uint64_t n_blocks = (n_words + kBlockWords - 1) / kBlockWords;
    std::atomic<uint64_t> next_block{0};
    ThreadPool::instance().run(n_parts_for(n_words), [&](uint32_t) {  // a record is read soon: words count as rows
      for (uint64_t n_done = 0;; ++n_done) {
        if (n_done > 0 && deadline.is_too_near(n_selected_.load(std::memory_order_relaxed) * kRemovalNs)) return;
        const uint64_t block = next_block.fetch_add(1, std::memory_order_relaxed);
        if (block >= n_blocks) return;
        const uint64_t at = first + block * kBlockWords;
        run_block(at, std::min(selection->end_word() - at, kBlockWords), selection->word(at));
      }
    });
    selection->end_at(first + std::min(n_words, next_block.load() * kBlockWords));
  }

  uint64_t n_scanned() const { return n_scanned_.load(); }
  uint64_t n_selected() const { return n_selected_.load(); }

 private:
  static constexpr uint64_t kBlockWords = kBlockRows / kWordRows;
  static constexpr uint64_t kRemovalNs = 50;  // of one row, about

  uint32_t n_predicates() const { return static_cast<uint32_t>(program_.size()); }

  void run_block(uint64_t first, uint64_t n, uint64_t* selected) {
    const SelectContext context = {rows_.meta_slab(),
                                   rows_.values_slab(),
                                   rows_.live_bits(),
                                   program_.data(),
                                   tests_,
                                   n_predicates(),
                                   needs_norm(program_.data(), n_predicates())};
    uint64_t open[kBlockWords];
    float scratch[kMostDim];
    kernels_.select_rows(context, first, n, selected, open);
    if (context.needs_norm) kernels_.select_by_norm(context, format_, first, n, open, scratch, selected);
    uint64_t n_scanned = 0, n_selected = 0;
    for (uint64_t w = 0; w < n; ++w) {
      n_scanned += static_cast<uint64_t>(__builtin_popcountll(rows_.live_bits()[first + w]));
      n_selected += static_cast<uint64_t>(__builtin_popcountll(selected[w]));
    }
    n_scanned_.fetch_add(n_scanned, std::memory_order_relaxed);
    n_selected_.fetch_add(n_selected, std::memory_order_relaxed);
  }

  const Rows& rows_;
  const RowFormat& format_;
  const Kernels& kernels_;
  const std::vector<Predicate>& program_;
  RecordTest tests_[kMaxPredicates];
  std::atomic<uint64_t> n_scanned_{0};
  std::atomic<uint64_t> n_selected_{0};
};

// Puts the n that go first before the others.
inline void put_first(std::vector<Victim>* victims, uint64_t n) {
  if (n < victims->size())
    std::nth_element(victims->begin(), victims->begin() + static_cast<int64_t>(n), victims->end(), is_before);
}

inline void keep_first(std::vector<Victim>* victims, uint64_t n) {
  put_first(victims, n);
  if (n < victims->size()) victims->resize(n);
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_EVICT_H_
