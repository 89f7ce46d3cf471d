// Training lookups, from forward to the update: tickets in graphs, gradients that wait, and what was hit.
//
// Gradients that wait for an optimizer lie here, an entry for each backward pass through a lookup, until EmbstoreApply
// takes those that are announced to it. An entry is announced by its slot: the place of a 1 in the gradient that the
// anchor of its layer got. So nobody takes what another thread's step left, or what was left by a backward pass whose
// gradients for the anchors were thrown away.
#ifndef EMBSTORE_TENSORFLOW_LOOKUPS_H_
#define EMBSTORE_TENSORFLOW_LOOKUPS_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tables.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/variant.h"
#include "tensorflow/core/framework/variant_op_registry.h"
#include "tensorflow/core/framework/variant_tensor_data.h"

namespace embstore_tensorflow {

using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TypeIndex;  // of the macro that registers variants

constexpr size_t kMostWaiting = 4096;  // lookups of a table whose optimizer never comes

// A training lookup: its ticket, and how it was pooled (offsets are empty where it was not). Tensors share memory.
struct Lookup {
  ~Lookup() { es_ticket_destroy(ticket); }
  TableRef table;
  es_ticket* ticket = nullptr;
  Tensor offsets, weights;
  int32_t mode = 0;
  bool is_pooled = false;

  int64_t n_bags() const { return offsets.NumElements() - 1; }
  const float* weight_data() const { return weights.NumElements() == 0 ? nullptr : weights.flat<float>().data(); }
  int64_t n_grads() const { return is_pooled ? n_bags() : static_cast<int64_t>(es_ticket_n(ticket)); }
  es_part part(void* rows) const {
    es_part part = {};
    part.n = es_ticket_n(ticket);
    part.rows = rows;
    part.row_dtype = ES_F32;
    if (is_pooled) {
      part.mode = mode;
      part.offsets = offsets.flat<int64_t>().data();
      part.n_bags = n_bags();
      part.weights = weight_data();
    }
    return part;
  }
};

// The handle of a lookup as it goes through a graph.
struct Ticket {
  std::shared_ptr<Lookup> lookup;

  std::string TypeName() const { return "embstore::Ticket"; }
  void Encode(tensorflow::VariantTensorData*) const {}
  bool Decode(const tensorflow::VariantTensorData&) { return false; }
  std::string DebugString() const { return TypeName(); }
};

// What TensorFlow asks for as the gradient of a ticket, which has none.
inline Status no_ticket(OpKernelContext*, const Ticket&, Ticket* out) {
  *out = Ticket();
  return absl::OkStatus();
}

REGISTER_UNARY_VARIANT_UNARY_OP_FUNCTION(tensorflow::ZEROS_LIKE_VARIANT_UNARY_OP, tensorflow::DEVICE_CPU, Ticket,
                                         no_ticket);

struct Waiting {
  std::shared_ptr<Lookup> lookup;
  Tensor grads;
  int64_t slot = 0;
  bool was_passed_over = false;  // was here when somebody took others
};

// A lookup's gradients that are taken, and what they are multiplied by.
struct Taken {
  Waiting waiting;
  float factor;
};

class Waitlist {
 public:
  static Waitlist& instance() {
    static Waitlist* const one = new Waitlist;
    return *one;
  }
  // Adds an entry whose slot is the next of `n_slots`, and says which that is.
  Status add(const std::string& name, Waiting waiting, int64_t n_slots, int64_t* slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Queue& queue = queues_[name];
    std::vector<Waiting>& all = queue.all;
    if (all.size() >= kMostWaiting)
      return absl::FailedPreconditionError(
          "gradients of " + std::to_string(all.size()) + " lookups wait for an optimizer of table '" + name +
          "': apply them by embstore.tensorflow.Optimizer, or make the layer with fused=True");
    *slot = waiting.slot = static_cast<int64_t>(queue.n_added++ % static_cast<uint64_t>(n_slots));
    all.push_back(std::move(waiting));
    return absl::OkStatus();
  }
  // Takes the entries of `table` whose slots have a scale, which those of one slot share. The others stay, until
  // another entry needs their slot. What is left of another table that had the name goes to nobody.
  std::vector<Taken> take(const std::string& name, const es_table* table, const float* scales, int64_t n_slots) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Waiting>& all = queues_[name].all;
    std::vector<int64_t> n_new(n_slots, 0), n_in(n_slots, 0);
    for (const Waiting& one : all) n_new[one.slot % n_slots] += !one.was_passed_over;
    const auto is_gone = [&](const Waiting& one) {
      return one.lookup->table.get() != table || (one.was_passed_over && n_new[one.slot % n_slots] > 0);
    };
    all.erase(std::remove_if(all.begin(), all.end(), is_gone), all.end());
    for (const Waiting& one : all) ++n_in[one.slot % n_slots];
    std::vector<Taken> taken;
    std::vector<Waiting> others;
    taken.reserve(all.size());  // before the first one moves, so that none is lost
    others.reserve(all.size());
    for (Waiting& one : all) {
      const int64_t slot = one.slot % n_slots;
      one.was_passed_over = true;
      if (scales[slot] == 0.0f)
        others.push_back(std::move(one));
      else
        taken.push_back({std::move(one), scales[slot] / static_cast<float>(n_in[slot])});
    }
    all.swap(others);
    return taken;
  }
  // Takes all, and says how many they were.
  size_t clear(const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Waiting> taken;
    std::swap(taken, queues_[name].all);
    return taken.size();
  }

 private:
  struct Queue {
    std::vector<Waiting> all;  // in the order in which they came
    uint64_t n_added = 0;
  };
  std::mutex mutex_;
  std::map<std::string, Queue> queues_;
};

// Unique keys that training lookups of a table found rows for, while somebody wants to know.
struct Hits {
  std::atomic<bool> is_wanted{false};
  std::atomic<int64_t> n_unique{0}, n_found{0};

  static Hits& of(const std::string& name) {
    static std::mutex* const mutex = new std::mutex;
    static auto* const all = new std::map<std::string, std::unique_ptr<Hits>>;
    const std::lock_guard<std::mutex> lock(*mutex);
    std::unique_ptr<Hits>& one = (*all)[name];
    if (one == nullptr) one = std::make_unique<Hits>();
    return *one;
  }
  int note(es_ticket* ticket) {
    if (!is_wanted.load(std::memory_order_relaxed)) return ES_OK;
    const int64_t* keys = nullptr;
    const uint8_t* key_status = nullptr;
    const uint32_t* inverse = nullptr;
    const int status = es_ticket_view(ticket, &keys, &key_status, &inverse);
    if (status != ES_OK) return status;
    const uint64_t n = es_ticket_n_unique(ticket);
    n_unique += n;
    n_found += std::count(key_status, key_status + n, static_cast<uint8_t>(ES_FOUND));
    return ES_OK;
  }
};

inline int update(const Lookup& lookup, float* grads, int64_t step, double lr, es_apply_report* report) {
  const es_part part = lookup.part(grads);
  es_batch batch = {};
  batch.table = lookup.table.get();
  batch.parts = &part;
  batch.n_parts = 1;
  batch.ticket = lookup.ticket;
  batch.lr = lr;
  const int status = es_apply_gradients_many(&batch, 1, step);
  *report = batch.report;
  return status;
}

// The gradients of a lookup, key by key; keys that had no row then have no part.
class ByKey {
 public:
  ByKey(uint64_t dim, uint64_t n) : dim_(dim) {
    keys_.reserve(n);
    grads_.reserve(n * dim);
  }

  int add(const Taken& taken) {
    const Lookup& lookup = *taken.waiting.lookup;
    const float *grads = taken.waiting.grads.flat<float>().data(), factor = taken.factor;
    const int64_t* keys = nullptr;
    const uint8_t* key_status = nullptr;
    const uint32_t* inverse = nullptr;
    const int status = es_ticket_view(lookup.ticket, &keys, &key_status, &inverse);
    if (status != ES_OK) return status;
    const auto add_one = [&](uint64_t i, const float* grad, float scale) {
      const uint32_t place = inverse[i];
      if (key_status[place] != ES_FOUND && key_status[place] != ES_INSERTED) return;
      keys_.push_back(keys[place]);
      std::transform(grad, grad + dim_, std::back_inserter(grads_), [scale](float g) { return g * scale; });
    };
    if (!lookup.is_pooled) {
      for (uint64_t i = 0; i < es_ticket_n(lookup.ticket); ++i) add_one(i, grads + i * dim_, factor);
      return ES_OK;
    }
    const auto offsets = lookup.offsets.flat<int64_t>();
    for (int64_t bag = 0; bag < lookup.n_bags(); ++bag) {
      const float n = static_cast<float>(offsets(bag + 1) - offsets(bag));
      const float by = lookup.mode == ES_POOL_MEAN    ? 1.0f / n
                       : lookup.mode == ES_POOL_SQRTN ? 1.0f / std::sqrt(n)
                                                      : 1.0f;
      for (int64_t i = offsets(bag); i < offsets(bag + 1); ++i) {
        const float weight = lookup.weight_data() == nullptr ? 1.0f : lookup.weight_data()[i];
        add_one(i, grads + bag * dim_, weight * by * factor);
      }
    }
    return ES_OK;
  }

  int apply(es_table* table, int64_t step, double lr, es_apply_report* report) const {
    return es_apply_gradients_by_key(table, keys_.data(), keys_.size(), grads_.data(), step, lr, report);
  }

 private:
  uint64_t dim_;
  std::vector<int64_t> keys_;
  std::vector<float> grads_;
};

}  // namespace embstore_tensorflow

#endif  // EMBSTORE_TENSORFLOW_LOOKUPS_H_
