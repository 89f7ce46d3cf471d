// TensorFlow ops over embstore.h: the calls; no algorithm. What the ops take and give is in signatures.cc.
//
// 1. A table is found by its name in every call: whoever loads a graph publishes the tables first.
// 2. Who writes holds the table's gate; no op needs Python or its lock.
// 3. No exception leaves an op: TensorFlow would end the process.
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "lookups.h"
#include "tables.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace embstore_tensorflow {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::TensorShape;

// An op about the table of a name; memory that is not there is an error of the op.
class NameOp : public OpKernel {
 public:
  explicit NameOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, c->GetAttr("table", &name_)); }
  void Compute(OpKernelContext* c) final {
    try {
      run(c);
    } catch (const std::bad_alloc&) {
      c->SetStatus(absl::ResourceExhaustedError("table '" + name_ + "': there is not enough memory"));
    } catch (const std::exception& error) {
      c->SetStatus(absl::InternalError("table '" + name_ + "': " + error.what()));
    }
  }

 protected:
  virtual void run(OpKernelContext* c) = 0;

  std::string name_;
};

// What all ops that read or write a table hold.
class TableOp : public NameOp {
 public:
  explicit TableOp(OpKernelConstruction* c) : NameOp(c) { OP_REQUIRES_OK(c, c->GetAttr("dim", &dim_)); }

 protected:
  Status get_table(TableRef* table) const { return acquire(name_, dim_, table); }
  Status allocate_rows(OpKernelContext* c, TensorShape shape, float** rows) const {
    Tensor* out = nullptr;
    Status status = shape.AddDimWithStatus(dim_);
    if (status.ok()) status = c->allocate_output(0, shape, &out);
    static float nothing = 0.0f;  // the address of no rows: null would mean that none are wanted
    if (status.ok()) *rows = out->NumElements() == 0 ? &nothing : out->flat<float>().data();
    return status;
  }
  Status give_ticket(OpKernelContext* c, std::shared_ptr<Lookup> lookup) const {
    Tensor* out = nullptr;
    const Status status = c->allocate_output(1, TensorShape({}), &out);
    if (status.ok()) out->scalar<tensorflow::Variant>()() = Ticket{std::move(lookup)};
    return status;
  }
  static Status scalar(OpKernelContext* c, int index, int64_t* out) {
    const Tensor& given = c->input(index);
    if (given.NumElements() != 1) return absl::InvalidArgumentError("step must be a scalar");
    *out = given.flat<int64_t>()(0);
    return absl::OkStatus();
  }

  int64_t dim_ = 0;
};

class FindOp : public TableOp {
 public:
  using TableOp::TableOp;
  void run(OpKernelContext* c) override {
    const Tensor& ids = c->input(0);
    TableRef table;
    OP_REQUIRES_OK(c, get_table(&table));
    float* rows = nullptr;
    OP_REQUIRES_OK(c, allocate_rows(c, ids.shape(), &rows));
    OP_REQUIRES_OK(c, status_of(es_find(table.get(), ids.flat<int64_t>().data(), ids.NumElements(), rows, ES_F32,
                                        ES_MISSING_DEFAULT, nullptr, nullptr, nullptr),
                                name_));
  }
};

class LookupOp : public TableOp {
 public:
  using TableOp::TableOp;
  void run(OpKernelContext* c) override {
    const Tensor& ids = c->input(1);
    int64_t step = 0;
    OP_REQUIRES_OK(c, scalar(c, 2, &step));
    auto lookup = std::make_shared<Lookup>();
    OP_REQUIRES_OK(c, get_table(&lookup->table));
    float* rows = nullptr;
    OP_REQUIRES_OK(c, allocate_rows(c, ids.shape(), &rows));
    {
      const Gate gate(lookup->table.get());
      OP_REQUIRES_OK(c, status_of(gate.status(), name_));
      OP_REQUIRES_OK(c, status_of(es_find_or_insert(lookup->table.get(), ids.flat<int64_t>().data(), ids.NumElements(),
                                                    nullptr, step, 0, rows, ES_F32, &lookup->ticket),
                                  name_));
    }
    OP_REQUIRES_OK(c, status_of(hits_.note(lookup->ticket), name_));
    OP_REQUIRES_OK(c, give_ticket(c, std::move(lookup)));
  }

 private:
  Hits& hits_ = Hits::of(name_);
};

// Pooled rows of bags; with `kTrains` a lookup in training, whose inputs begin with the anchor and end with the step.
template <bool kTrains>
class PooledOp : public TableOp {
 public:
  explicit PooledOp(OpKernelConstruction* c) : TableOp(c) {
    std::string mode;
    OP_REQUIRES_OK(c, c->GetAttr("mode", &mode));
    mode_ = mode == "sum" ? ES_POOL_SUM : mode == "mean" ? ES_POOL_MEAN : ES_POOL_SQRTN;
  }
  void run(OpKernelContext* c) override {
    constexpr int kIds = kTrains ? 1 : 0;
    const Tensor &ids = c->input(kIds), &offsets = c->input(kIds + 1), &weights = c->input(kIds + 2);
    OP_REQUIRES(c, offsets.NumElements() >= 1, absl::InvalidArgumentError("offsets must have at least one element"));
    OP_REQUIRES(c, weights.NumElements() == 0 || weights.NumElements() == ids.NumElements(),
                absl::InvalidArgumentError("weights must be one for each id, or none"));
    auto lookup = std::make_shared<Lookup>();
    OP_REQUIRES_OK(c, get_table(&lookup->table));
    lookup->offsets = offsets;
    lookup->weights = weights;
    lookup->mode = mode_;
    lookup->is_pooled = true;
    float* rows = nullptr;
    OP_REQUIRES_OK(c, allocate_rows(c, TensorShape({lookup->n_bags()}), &rows));
    es_part part = lookup_part(*lookup, ids, rows);
    es_batch batch = {};
    batch.table = lookup->table.get();
    batch.parts = &part;
    batch.n_parts = 1;
    if constexpr (!kTrains) {
      OP_REQUIRES_OK(c, status_of(es_find_many(&batch, 1, ES_MISSING_DEFAULT), name_));
    } else {
      int64_t step = 0;
      OP_REQUIRES_OK(c, scalar(c, kIds + 3, &step));
      const Gate gate(lookup->table.get());
      OP_REQUIRES_OK(c, status_of(gate.status(), name_));
      const int status = es_find_or_insert_many(&batch, 1, step, 0);
      lookup->ticket = batch.ticket;
      OP_REQUIRES_OK(c, status_of(status, name_));
      OP_REQUIRES_OK(c, status_of(hits_.note(lookup->ticket), name_));
      OP_REQUIRES_OK(c, give_ticket(c, std::move(lookup)));
    }
  }

 private:
  static es_part lookup_part(const Lookup& lookup, const Tensor& ids, float* rows) {
    es_part part = {};
    part.keys = ids.flat<int64_t>().data();
    part.n = ids.NumElements();
    part.rows = rows;
    part.row_dtype = ES_F32;
    part.mode = lookup.mode;
    part.offsets = lookup.offsets.flat<int64_t>().data();
    part.n_bags = lookup.n_bags();
    part.weights = lookup.weight_data();
    return part;
  }
  int32_t mode_ = 0;
  Hits& hits_ = Hits::of(name_);
};

// The gradient of a lookup: kept for EmbstoreApply, to which a 1 in the anchor's gradient announces it, or applied at
// once.
class SettleOp : public TableOp {
 public:
  explicit SettleOp(OpKernelConstruction* c) : TableOp(c) {
    OP_REQUIRES_OK(c, c->GetAttr("fused", &fused_));
    OP_REQUIRES_OK(c, c->GetAttr("anchor", &anchor_));
    OP_REQUIRES(c, anchor_.num_elements() > 0, absl::InvalidArgumentError("an anchor has at least one element"));
  }
  void run(OpKernelContext* c) override {
    const Ticket* ticket = c->input(0).scalar<tensorflow::Variant>()().get<Ticket>();
    OP_REQUIRES(c, ticket != nullptr && ticket->lookup != nullptr, absl::InvalidArgumentError("this is no ticket"));
    const Tensor& grads = c->input(1);
    const std::shared_ptr<Lookup>& lookup = ticket->lookup;
    const bool has_width = grads.dims() > 0 && grads.dim_size(grads.dims() - 1) == dim_;
    OP_REQUIRES(c, has_width && grads.NumElements() == lookup->n_grads() * dim_,
                absl::InvalidArgumentError("gradients of shape " + grads.shape().DebugString() + " are not those of " +
                                           std::to_string(lookup->n_grads()) + " rows of dim " + std::to_string(dim_)));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, anchor_, &out));
    auto settled = out->flat<float>();
    settled.setZero();
    if (fused_) {
      int64_t step = 0;
      OP_REQUIRES_OK(c, scalar(c, 2, &step));
      const double lr = rate_of(c->input(3).flat<double>()(0), lookup->table.get());
      OP_REQUIRES_OK(c, check_rate(lr, name_));
      es_apply_report report;
      const Gate gate(lookup->table.get());
      OP_REQUIRES_OK(c, status_of(gate.status(), name_));
      float* const data = const_cast<float*>(grads.flat<float>().data());
      OP_REQUIRES_OK(c, status_of(update(*lookup, data, step, lr, &report), name_));
    } else {
      int64_t slot = 0;
      OP_REQUIRES_OK(c, Waitlist::instance().add(name_, {lookup, grads}, anchor_.num_elements(), &slot));
      settled(slot) = 1.0f;
    }
  }

 private:
  bool fused_ = false;
  TensorShape anchor_;
};

// Applies what waits and is announced. `scale` is the sum of the anchors' gradients, a 1 in the slot of each backward
// pass through a lookup: what scaled it scales them.
class ApplyOp : public TableOp {
 public:
  using TableOp::TableOp;
  void run(OpKernelContext* c) override {
    int64_t step = 0;
    OP_REQUIRES_OK(c, scalar(c, 0, &step));
    TableRef table;
    OP_REQUIRES_OK(c, get_table(&table));
    const double lr = rate_of(c->input(1).flat<double>()(0), table.get());
    OP_REQUIRES_OK(c, check_rate(lr, name_));
    const Tensor& scale = c->input(2);
    OP_REQUIRES(c, scale.NumElements() > 0, absl::InvalidArgumentError("scale has no element"));
    const std::vector<Taken> all =
        Waitlist::instance().take(name_, table.get(), scale.flat<float>().data(), scale.NumElements());
    es_apply_report report = {};
    if (!all.empty()) {
      const Gate gate(table.get());
      OP_REQUIRES_OK(c, status_of(gate.status(), name_));
      OP_REQUIRES_OK(c, status_of(apply(all, table.get(), step, lr, &report), name_));
    }
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({4}), &out));
    auto counts = out->flat<int64_t>();
    counts(0) = report.n_applied;
    counts(1) = report.n_dropped;
    counts(2) = report.n_stale;
    counts(3) = report.n_nonfinite;
  }

 private:
  int apply(const std::vector<Taken>& all, es_table* table, int64_t step, double lr, es_apply_report* report) const {
    if (all.size() == 1 && all[0].factor == 1.0f) {
      const Waiting& only = all[0].waiting;
      return update(*only.lookup, const_cast<float*>(only.grads.flat<float>().data()), step, lr, report);
    }
    uint64_t n = 0;
    for (const Taken& one : all) n += es_ticket_n(one.waiting.lookup->ticket);
    ByKey sums(dim_, n);
    for (const Taken& one : all) {
      const int status = sums.add(one);
      if (status != ES_OK) return status;
    }
    return sums.apply(table, step, lr, report);
  }
};

// Forgets the gradients that wait, and says of how many lookups.
class ClearOp : public NameOp {
 public:
  using NameOp::NameOp;
  void run(OpKernelContext* c) override {
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({}), &out));
    out->scalar<int64_t>()() = static_cast<int64_t>(Waitlist::instance().clear(name_));
  }
};

// Gives (unique keys, found ones) of the training lookups since the last call, which began to count them.
class HitsOp : public NameOp {
 public:
  using NameOp::NameOp;
  void run(OpKernelContext* c) override {
    Hits& hits = Hits::of(name_);
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({2}), &out));
    out->flat<int64_t>()(0) = hits.n_unique.exchange(0);
    out->flat<int64_t>()(1) = hits.n_found.exchange(0);
    hits.is_wanted = true;
  }
};

#define EMBSTORE_KERNEL(op, kernel) REGISTER_KERNEL_BUILDER(Name(op).Device(tensorflow::DEVICE_CPU), kernel)
EMBSTORE_KERNEL("EmbstoreFind", FindOp);
EMBSTORE_KERNEL("EmbstoreLookup", LookupOp);
EMBSTORE_KERNEL("EmbstorePooled", PooledOp<false>);
EMBSTORE_KERNEL("EmbstorePooledLookup", PooledOp<true>);
EMBSTORE_KERNEL("EmbstoreSettle", SettleOp);
EMBSTORE_KERNEL("EmbstoreApply", ApplyOp);
EMBSTORE_KERNEL("EmbstoreClear", ClearOp);
EMBSTORE_KERNEL("EmbstoreHits", HitsOp);
#undef EMBSTORE_KERNEL

}  // namespace embstore_tensorflow
