// Writing rows: births and optimizer updates, split among threads by bucket.
//
// 1. All tasks of one bucket are one thread's, so a bucket's control word has one writer.
// 2. Gradients of one key are summed in a fixed order before its optimizer runs once.
// 3. run() methods cannot fail: every buffer was made before.
#ifndef EMBSTORE_CPU_UPDATE_H_
#define EMBSTORE_CPU_UPDATE_H_

#include <vector>

#include "kernels.h"
#include "thread_pool.h"
#include "ticket.h"

namespace embstore::cpu {

constexpr uint64_t kRowsPerThread = 1024;  // below that a second thread costs more than it brings

inline uint32_t n_parts_for(uint64_t n_rows) {
  const uint64_t most = static_cast<uint64_t>(ThreadPool::instance().n_threads());
  return static_cast<uint32_t>(std::max<uint64_t>(1, std::min(most, n_rows / kRowsPerThread)));
}

// Row tasks in one list a part, and the scratch of each part.
class TaskLists {
 public:
  void reset(uint64_t n_rows, uint64_t scratch_floats) {
    n_parts_ = n_parts_for(n_rows);
    if (lists_.size() < n_parts_) {
      lists_.resize(n_parts_);
      scratch_.resize(n_parts_);
    }
    for (uint32_t p = 0; p < n_parts_; ++p) {
      lists_[p].clear();
      lists_[p].reserve(n_rows / n_parts_ + 16);
      if (scratch_[p].size() < scratch_floats) scratch_[p].resize(scratch_floats);
    }
  }

  // Tasks of one owner go to one part: the bucket of a row that readers may see, any number for one they cannot.
  void add(uint64_t owner, const RowTask& task) { lists_[n_parts_ == 1 ? 0 : owner % n_parts_].push_back(task); }
  void add(const Bucket* owner, const RowTask& task) { add(reinterpret_cast<uint64_t>(owner) / sizeof(Bucket), task); }

  uint32_t n_parts() const { return n_parts_; }
  const std::vector<RowTask>& list(uint32_t part) const { return lists_[part]; }
  float* scratch(uint32_t part) { return scratch_[part].data(); }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const auto& list : lists_) sum += list.capacity() * sizeof(RowTask);
    for (const auto& floats : scratch_) sum += floats.capacity() * sizeof(float);
    return sum;
  }

 private:
  uint32_t n_parts_ = 1;
  std::vector<std::vector<RowTask>> lists_;
  std::vector<std::vector<float>> scratch_;
};

// The summed gradient of each distinct key of a ticket.
class GradientSums {
 public:
  // Sums of the keys that `wanted` names and that occur more than once; others are read where they lie.
  void run(const Kernels& kernels, Ticket& ticket, const std::vector<uint32_t>& wanted, const float* grads,
           uint32_t dim) {
    const Distinct& distinct = ticket.distinct;
    ticket.group_positions();
    tasks_.clear();
    sums_.assign(distinct.n_unique(), nullptr);
    uint64_t n_repeated = 0;
    for (const uint32_t u : wanted) n_repeated += distinct.n_positions[u] > 1;
    values_.resize(n_repeated * dim);
    for (const uint32_t u : wanted) {
      if (distinct.n_positions[u] == 1) {
        sums_[u] = grads + uint64_t{distinct.first[u]} * dim;
        continue;
      }
      float* const out = values_.data() + tasks_.size() * dim;
      tasks_.push_back(SumTask{ticket.positions.data() + ticket.first_of[u], distinct.n_positions[u], out});
      sums_[u] = out;
    }
    sum_in_parts(kernels, grads, dim);
  }

  const float* of(uint32_t unique) const { return sums_[unique]; }
  uint64_t bytes() const {
    return tasks_.capacity() * sizeof(SumTask) + sums_.capacity() * 8 + values_.capacity() * 4 + levels_.capacity() * 4;
  }

 private:
  void sum_in_parts(const Kernels& kernels, const float* grads, uint32_t dim) {
    const uint64_t n = tasks_.size();
    const uint32_t n_parts = n_parts_for(n);
    const uint64_t level_floats = uint64_t{kReduceLevels} * dim;
    levels_.resize(n_parts * level_floats);
    ThreadPool::instance().run(n_parts, [&](uint32_t part) {
      const uint64_t first = n * part / n_parts;
      const uint64_t end = n * (part + 1) / n_parts;
      kernels.sum_gradients(grads, dim, tasks_.data() + first, end - first, levels_.data() + part * level_floats);
    });
  }

  std::vector<SumTask> tasks_;
  std::vector<const float*> sums_;  // (n_unique,)
  std::vector<float> values_;
  std::vector<float> levels_;
};

inline void run_births(const Kernels& kernels, BirthContext context, TaskLists& lists) {
  ThreadPool::instance().run(lists.n_parts(), [&](uint32_t part) {
    BirthContext own = context;
    own.scratch = lists.scratch(part);
    kernels.birth_rows(own, lists.list(part).data(), lists.list(part).size());
  });
}

inline void run_updates(const Kernels& kernels, UpdateContext context, TaskLists& lists) {
  ThreadPool::instance().run(lists.n_parts(), [&](uint32_t part) {
    UpdateContext own = context;
    own.scratch = lists.scratch(part);
    kernels.update_rows(own, lists.list(part).data(), lists.list(part).size());
  });
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_UPDATE_H_
