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
#include "ranges.h"
#include "ticket.h"

namespace embstore::cpu {

// Which distinct keys are updated, by the parts of their batch, and by which thread: all rows of a version word are one
// owner's.
class UpdateLists {
 public:
  void reserve(const Distinct& distinct, uint64_t scratch_floats) {
    const uint64_t n = distinct.n();
    n_owners_ = n_parts_for(n);
    wanted_.resize(n);
    n_wanted_.resize(distinct.n_parts());
    if (n_owners_ > 1) {
      owned_.resize(n);
      ends_.resize(uint64_t{distinct.n_parts()} * n_owners_);
    }
    scratch_floats_ = round_up(scratch_floats, 16);
    scratch_.resize(scratch_floats_ * n_owners_);
  }

  // The wanted keys of a part: ascending, room for all of them.
  uint32_t* wanted(const DistinctPart& part) { return wanted_.data() + part.first; }
  uint64_t& n_wanted(uint32_t part) { return n_wanted_[part]; }
  uint64_t n_wanted_in_all() const {
    uint64_t sum = 0;
    for (uint64_t part = 0; part < n_wanted_.size(); ++part) sum += n_wanted_[part];
    return sum;
  }

  // Sorts the wanted keys of each part by the owners of their rows.
  void split(const Distinct& distinct, const uint32_t* rows) {
    if (n_owners_ == 1) return;
    distinct.in_parallel([&](uint32_t number, const DistinctPart& part) {
      const uint32_t* const wanted = this->wanted(part);
      const uint64_t n = n_wanted_[number];
      uint32_t* const ends = &ends_[uint64_t{number} * n_owners_];
      std::fill(ends, ends + n_owners_, 0u);
      for (uint64_t i = 0; i < n; ++i) ++ends[owner_of(rows[wanted[i]])];
      uint32_t at = static_cast<uint32_t>(part.first);
      for (uint32_t owner = 0; owner < n_owners_; ++owner) at += std::exchange(ends[owner], at);
      for (uint64_t i = 0; i < n; ++i) owned_[ends[owner_of(rows[wanted[i]])]++] = wanted[i];
    });
  }

  // update(context, distinct keys, n) by their owners.
  template <class Update>
  void run(const Update& update, const Distinct& distinct, const UpdateContext& context) {
    ThreadPool::instance().run(n_owners_, [&](uint32_t owner) {
      UpdateContext own = context;
      own.scratch = scratch_.data() + owner * scratch_floats_;
      for (uint32_t part = 0; part < distinct.n_parts(); ++part) {
        const uint64_t begin = distinct.parts[part].first;
        if (n_owners_ == 1) {
          update(own, wanted_.data() + begin, n_wanted_[part]);
          continue;
        }
        const uint32_t* const ends = &ends_[uint64_t{part} * n_owners_];
        const uint64_t first = owner > 0 ? ends[owner - 1] : begin;
        update(own, owned_.data() + first, ends[owner] - first);
      }
    });
  }

  uint64_t bytes() const {
    return wanted_.bytes() + owned_.bytes() + ends_.bytes() + n_wanted_.bytes() + scratch_.bytes();
  }

 private:
  uint32_t owner_of(uint32_t row) const {
    return static_cast<uint32_t>(uint64_t{version_of(row)} * n_owners_ / kVersions);
  }

  uint32_t n_owners_ = 1;
  uint64_t scratch_floats_ = 0;
  Scratch<uint32_t> wanted_;    // part after part
  Scratch<uint64_t> n_wanted_;  // (n_parts,)
  Scratch<uint32_t> owned_;     // the wanted keys, in each part owner after owner
  Scratch<uint32_t> ends_;      // (n_parts, n_owners)
  Scratch<float> scratch_;
};

// The rows that a batch gives birth to.
class BirthLists {
 public:
  void reserve(uint64_t n, uint64_t scratch_floats) {
    tasks_.resize(n);
    scratch_floats_ = round_up(scratch_floats, 16);
    n_parts_ = n_parts_for(n);
    scratch_.resize(scratch_floats_ * n_parts_);
  }
  void set(uint64_t i, const RowTask& task) { tasks_[i] = task; }

  void run(const Kernels& kernels, const BirthContext& context) {
    for_ranges(tasks_.size(), n_parts_, [&](uint32_t part, uint64_t first, uint64_t end) {
      BirthContext own = context;
      own.scratch = scratch_.data() + part * scratch_floats_;
      kernels.birth_rows(own, tasks_.data() + first, end - first);
    });
  }

  // Slots alone: somebody else has the values.
  void run_slots(const BirthContext& context) const {
    for_ranges(tasks_.size(), [&](uint32_t, uint64_t first, uint64_t end) {
      for (uint64_t i = first; i < end; ++i) birth_slots(context, tasks_[i].slots);
    });
  }

  uint64_t bytes() const { return tasks_.bytes() + scratch_.bytes(); }

 private:
  uint32_t n_parts_ = 1;
  uint64_t scratch_floats_ = 0;
  Scratch<RowTask> tasks_;
  Scratch<float> scratch_;
};

// The summed gradient of each distinct key of a ticket.
class GradientSums {
 public:
  // Sums of the keys that `updates` wants; a single gradient without a weight is read where it lies. Whether all are
  // finite.
  bool run(const Kernels& kernels, Ticket& ticket, UpdateLists& updates, const GradientView& grads) {
    const Distinct& distinct = ticket.distinct;
    const uint32_t least = grads.weights != nullptr ? 1 : 2;
    ticket.group_positions(least);
    count(distinct, updates, least);
    sums_.resize(distinct.n());
    singles_.resize(distinct.n());
    tasks_.resize(n_summed_[distinct.n_parts()]);
    values_.resize(tasks_.size() * grads.dim);
    std::atomic<bool> is_finite{true};
    distinct.in_parallel([&](uint32_t number, const DistinctPart& part) {
      uint64_t at = n_summed_[number];
      const float** const singles = singles_.data() + part.first;
      uint64_t n_singles = 0;
      for (uint64_t i = 0; i < updates.n_wanted(number); ++i) {
        const uint32_t u = updates.wanted(part)[i];
        if (distinct.n_positions[u] < least) {
          sums_[u] = singles[n_singles++] = gradient_at(grads, distinct.first[u]);
          continue;
        }
        float* const out = values_.data() + at * grads.dim;
        tasks_[at++] = SumTask{ticket.positions_of(u), distinct.n_positions[u], out};
        sums_[u] = out;
      }
      if (!kernels.all_rows_finite(singles, n_singles, grads.dim)) is_finite.store(false, std::memory_order_relaxed);
    });
    return sum_in_pieces(kernels, grads) && is_finite.load(std::memory_order_relaxed);
  }

  const float* of(uint32_t unique) const { return sums_[unique]; }
  const float* const* data() const { return sums_.data(); }
  uint64_t bytes() const {
    return tasks_.bytes() + singles_.bytes() + sums_.bytes() + values_.bytes() + levels_.bytes() + n_summed_.bytes();
  }

 private:
  // How many keys of each part have several gradients.
  void count(const Distinct& distinct, UpdateLists& updates, uint32_t least) {
    n_summed_.resize(distinct.n_parts() + 1);
    distinct.in_parallel([&](uint32_t number, const DistinctPart& part) {
      const uint32_t* const wanted = updates.wanted(part);
      uint64_t n = 0;
      for (uint64_t i = 0; i < updates.n_wanted(number); ++i) n += distinct.n_positions[wanted[i]] >= least;
      n_summed_[number + 1] = n;
    });
    n_summed_[0] = 0;
    for (uint32_t part = 0; part < distinct.n_parts(); ++part) n_summed_[part + 1] += n_summed_[part];
  }

  // Several pieces for each thread: the keys that come first are those with the most occurrences.
  bool sum_in_pieces(const Kernels& kernels, const GradientView& grads) {
    constexpr uint32_t kPiecesPerThread = 16;
    const uint64_t n = tasks_.size();
    const uint32_t n_threads = n_parts_for(n);
    const uint32_t n_pieces = n_threads == 1 ? 1 : n_threads * kPiecesPerThread;
    const uint64_t level_floats = uint64_t{kReduceLevels + 1} * grads.dim;
    levels_.resize(n_pieces * level_floats);
    std::atomic<bool> is_finite{true};
    ThreadPool::instance().run(n_pieces, [&](uint32_t piece) {
      const uint64_t first = n * piece / n_pieces;
      const uint64_t end = n * (piece + 1) / n_pieces;
      float* const levels = levels_.data() + piece * level_floats;
      if (!kernels.sum_gradients(grads, tasks_.data() + first, end - first, levels))
        is_finite.store(false, std::memory_order_relaxed);
    });
    return is_finite.load(std::memory_order_relaxed);
  }

  Scratch<SumTask> tasks_;
  Scratch<const float*> singles_;  // part after part
  Scratch<const float*> sums_;     // by the numbers of distinct keys
  Scratch<uint64_t> n_summed_;     // (n_parts + 1,) tasks before each part's
  Scratch<float> values_;          // (tasks, dim)
  Scratch<float> levels_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_UPDATE_H_
