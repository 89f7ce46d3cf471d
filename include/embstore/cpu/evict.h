// Choosing rows to remove: a sequential scan of the meta records, norms by the block, victims by (score, key).
#ifndef EMBSTORE_CPU_EVICT_H_
#define EMBSTORE_CPU_EVICT_H_

#include <algorithm>
#include <chrono>
#include <vector>

#include "config.h"
#include "kernels.h"
#include "rows.h"

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

 private:
  std::vector<int64_t> keys_;
};

// Runs a predicate over rows [first, end), a block at a time.
class EvictionScan {
 public:
  EvictionScan(const Rows& rows, const RowFormat& format, const Kernels& kernels,
               const std::vector<Predicate>& predicates, int64_t step, int64_t step_base)
      : rows_(rows),
        format_(format),
        kernels_(kernels),
        predicates_(predicates),
        step_(step),
        step_base_(step_base),
        needs_norm_(needs_norm(predicates.data(), static_cast<uint32_t>(predicates.size()))),
        scratch_(format.dim) {}

  static constexpr uint64_t kBlock = 4096;

  // Appends the rows of the block that match; returns how many rows were looked at.
  uint64_t run(uint64_t first, uint64_t end, std::vector<Victim>* out) {
    ids_.clear();
    values_.clear();
    rows_.for_each(first, end, [&](uint32_t row, const Meta*) {
      ids_.push_back(row);
      values_.push_back(rows_.values(row));
    });
    norms_.assign(ids_.size(), float_of(0x7FC00000u));
    if (needs_norm_) kernels_.norms(values_.data(), ids_.size(), format_, scratch_.data(), norms_.data());
    for (uint64_t i = 0; i < ids_.size(); ++i) {
      const Meta* meta = rows_.meta(ids_[i]);
      const int64_t row_step = step_base_ + meta->step;
      const RowFacts facts = {age_of(step_, row_step), meta->freq, norms_[i]};
      if (is_evictable(predicates_.data(), static_cast<uint32_t>(predicates_.size()), facts))
        out->push_back(Victim{row_step, static_cast<int64_t>(meta->key), ids_[i]});
    }
    return ids_.size();
  }

 private:
  const Rows& rows_;
  const RowFormat& format_;
  const Kernels& kernels_;
  const std::vector<Predicate>& predicates_;
  int64_t step_;
  int64_t step_base_;
  bool needs_norm_;
  std::vector<float> scratch_;
  std::vector<uint32_t> ids_;
  std::vector<const void*> values_;
  std::vector<float> norms_;
};

// Keeps the n that go first, in their order.
inline void keep_first(std::vector<Victim>* victims, uint64_t n) {
  if (victims->size() <= n) return;
  std::nth_element(victims->begin(), victims->begin() + static_cast<int64_t>(n), victims->end(), is_before);
  victims->resize(n);
}

// When a bounded scan must end.
class Deadline {
 public:
  explicit Deadline(double seconds) : is_bounded_(seconds > 0) {
    if (is_bounded_)
      end_ = std::chrono::steady_clock::now() +
             std::chrono::nanoseconds(static_cast<int64_t>(std::min(seconds, 1e9) * 1e9));
  }
  bool is_bounded() const { return is_bounded_; }
  bool has_passed() const { return is_bounded_ && std::chrono::steady_clock::now() >= end_; }

 private:
  bool is_bounded_;
  std::chrono::steady_clock::time_point end_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_EVICT_H_
