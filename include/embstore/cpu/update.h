// Writing rows: births and optimizer updates, split among threads by row.
//
// 1. All rows of one version word are one thread's, so that a version has one writer.
// 2. Gradients of one key are summed in a fixed order before its optimizer runs once.
// 3. run() methods cannot fail: every buffer was made before.
#ifndef EMBSTORE_CPU_UPDATE_H_
#define EMBSTORE_CPU_UPDATE_H_

#include <vector>

#include "gradients.h"
#include "kernels.h"
#include "thread_pool.h"
#include "ticket.h"

namespace embstore::cpu {

constexpr uint64_t kRowsPerThread = 1024;  // below that a second thread costs more than it brings

inline uint32_t n_parts_for(uint64_t n_rows) {
  const uint64_t most = static_cast<uint64_t>(ThreadPool::instance().n_threads());
  return static_cast<uint32_t>(std::max<uint64_t>(1, std::min(most, n_rows / kRowsPerThread)));
}

// run(part, first, end) for ranges of [0, n), each by one thread.
template <class Run>
void for_ranges(uint64_t n, const Run& run) {
  const uint32_t n_parts = n_parts_for(n);
  ThreadPool::instance().run(n_parts, [&](uint32_t part) { run(part, n * part / n_parts, n * (part + 1) / n_parts); });
}

// Which keys are updated by which thread: lists[range][part] of a table of n_parts x n_parts.
class UpdateLists {
 public:
  void reserve(uint64_t n, uint64_t scratch_floats) {
    n_parts_ = n_parts_for(n);
    wanted_.resize(n);
    if (n_parts_ > 1) shared_.resize(n);
    counts_.resize(n_parts_ * n_parts_ + 1);
    scratch_floats_ = round_up(scratch_floats, 16);
    scratch_.resize(scratch_floats_ * n_parts_);
  }

  uint32_t* wanted() { return wanted_.data(); }  // (n,) keys to be updated, ascending
  void set_n_wanted(uint64_t n) { wanted_.truncate(n); }
  uint64_t n_wanted() const { return wanted_.size(); }

  // Splits the wanted keys: each range of them is sorted by the part that owns the row.
  void split(const uint32_t* rows) {
    if (n_parts_ == 1) return;
    const uint64_t n = wanted_.size();
    ThreadPool::instance().run(n_parts_, [&](uint32_t range) {
      const uint64_t first = n * range / n_parts_;
      const uint64_t end = n * (range + 1) / n_parts_;
      uint64_t* const next = &counts_[uint64_t{range} * n_parts_];
      std::fill(next, next + n_parts_, uint64_t{0});
      for (uint64_t i = first; i < end; ++i) ++next[part_of(rows[wanted_[i]])];
      uint64_t at = first;
      for (uint32_t part = 0; part < n_parts_; ++part) {
        const uint64_t count = next[part];
        next[part] = at;
        at += count;
      }
      for (uint64_t i = first; i < end; ++i) shared_[next[part_of(rows[wanted_[i]])]++] = wanted_[i];
    });
  }

  void run(const Kernels& kernels, const UpdateContext& context) {
    ThreadPool::instance().run(n_parts_, [&](uint32_t part) {
      UpdateContext own = context;
      own.scratch = scratch_.data() + part * scratch_floats_;
      if (n_parts_ == 1) return kernels.update_rows(own, wanted_.data(), wanted_.size());
      for (uint32_t range = 0; range < n_parts_; ++range) {
        // After split() a list's number is its end, and that of the list before its beginning.
        const uint64_t* const ends = &counts_[uint64_t{range} * n_parts_];
        const uint64_t first = part > 0 ? ends[part - 1] : wanted_.size() * range / n_parts_;
        kernels.update_rows(own, shared_.data() + first, ends[part] - first);
      }
    });
  }

  uint64_t bytes() const { return wanted_.bytes() + shared_.bytes() + counts_.bytes() + scratch_.bytes(); }

 private:
  uint32_t part_of(uint32_t row) const {
    return static_cast<uint32_t>(uint64_t{version_of(row)} * n_parts_ / kVersions);
  }

  uint32_t n_parts_ = 1;
  uint64_t scratch_floats_ = 0;
  Scratch<uint32_t> wanted_;
  Scratch<uint32_t> shared_;  // the wanted keys, range by range, in each part by part
  Scratch<uint64_t> counts_;
  Scratch<float> scratch_;
};

// The rows that a batch gives birth to.
class BirthLists {
 public:
  void reserve(uint64_t n, uint64_t scratch_floats) {
    tasks_.resize(n);
    scratch_floats_ = round_up(scratch_floats, 16);
    scratch_.resize(scratch_floats_ * n_parts_for(n));
  }
  void set(uint64_t i, const RowTask& task) { tasks_[i] = task; }

  void run(const Kernels& kernels, const BirthContext& context) {
    for_ranges(tasks_.size(), [&](uint32_t part, uint64_t first, uint64_t end) {
      BirthContext own = context;
      own.scratch = scratch_.data() + part * scratch_floats_;
      kernels.birth_rows(own, tasks_.data() + first, end - first);
    });
  }

  uint64_t bytes() const { return tasks_.bytes() + scratch_.bytes(); }

 private:
  uint64_t scratch_floats_ = 0;
  Scratch<RowTask> tasks_;
  Scratch<float> scratch_;
};

// The summed gradient of each distinct key of a ticket.
class GradientSums {
 public:
  // Sums of the keys that `wanted` (n,) names; a single gradient without a weight is read where it lies.
  void run(const Kernels& kernels, Ticket& ticket, const uint32_t* wanted, uint64_t n, const GradientView& grads) {
    const Distinct& distinct = ticket.distinct;
    const uint32_t least = grads.weights != nullptr ? 1 : 2;
    ticket.group_positions(least);
    sums_.resize(distinct.n_unique);
    tasks_.resize(n);
    uint64_t n_tasks = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const uint32_t u = wanted[i];
      if (distinct.n_positions[u] < least) {
        sums_[u] = gradient_at(grads, distinct.first[u]);
        continue;
      }
      tasks_[n_tasks++] = SumTask{ticket.positions.data() + ticket.first_of[u], distinct.n_positions[u], nullptr};
    }
    values_.resize(n_tasks * grads.dim);
    n_tasks = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const uint32_t u = wanted[i];
      if (distinct.n_positions[u] < least) continue;
      float* const out = values_.data() + n_tasks * grads.dim;
      tasks_[n_tasks++].out = out;
      sums_[u] = out;
    }
    tasks_.truncate(n_tasks);
    sum_in_parts(kernels, grads);
  }

  const float* of(uint32_t unique) const { return sums_[unique]; }
  const float* const* data() const { return sums_.data(); }
  uint64_t n_summed() const { return tasks_.size(); }
  const float* summed() const { return values_.data(); }  // (n_summed, dim)
  uint64_t bytes() const { return tasks_.bytes() + sums_.bytes() + values_.bytes() + levels_.bytes(); }

 private:
  // Several pieces for each thread: the keys that come first are those with the most occurrences.
  void sum_in_parts(const Kernels& kernels, const GradientView& grads) {
    constexpr uint32_t kPiecesPerThread = 16;
    const uint64_t n = tasks_.size();
    const uint32_t n_threads = n_parts_for(n);
    const uint32_t n_pieces = n_threads == 1 ? 1 : n_threads * kPiecesPerThread;
    const uint64_t level_floats = uint64_t{kReduceLevels + 1} * grads.dim;
    levels_.resize(n_pieces * level_floats);
    ThreadPool::instance().run(n_pieces, [&](uint32_t piece) {
      const uint64_t first = n * piece / n_pieces;
      const uint64_t end = n * (piece + 1) / n_pieces;
      kernels.sum_gradients(grads, tasks_.data() + first, end - first, levels_.data() + piece * level_floats);
    });
  }

  Scratch<SumTask> tasks_;
  Scratch<const float*> sums_;  // (n_unique,)
  Scratch<float> values_;
  Scratch<float> levels_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_UPDATE_H_
