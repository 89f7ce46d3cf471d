// TensorFlow ops over embstore.h: what they take and give, their shapes, and the calls; no algorithm.
//
// 1. A table is found by its name in every call: whoever loads a graph publishes the tables first.
// 2. All ops are stateful, so that none is merged, folded or dropped.
// 3. Who writes holds the table's gate; no op needs Python or its lock.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lookups.h"
#include "tables.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace embstore_tensorflow {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// What all ops that name a table hold.
class TableOp : public OpKernel {
 public:
  explicit TableOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("table", &name_));
    OP_REQUIRES_OK(c, c->GetAttr("dim", &dim_));
  }

 protected:
  Status get_table(TableRef* table) const { return acquire(name_, dim_, table); }
  Status allocate_rows(OpKernelContext* c, TensorShape shape, float** rows) const {
    shape.AddDim(dim_);
    Tensor* out = nullptr;
    const Status status = c->allocate_output(0, shape, &out);
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

  std::string name_;
  int64_t dim_ = 0;
};

class FindOp : public TableOp {
 public:
  using TableOp::TableOp;
  void Compute(OpKernelContext* c) override {
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
  void Compute(OpKernelContext* c) override {
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
  void Compute(OpKernelContext* c) override {
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

// The gradient of a lookup: kept for EmbstoreApply, which the anchor's gradient 1 announces, or applied at once.
class SettleOp : public TableOp {
 public:
  explicit SettleOp(OpKernelConstruction* c) : TableOp(c) { OP_REQUIRES_OK(c, c->GetAttr("fused", &fused_)); }
  void Compute(OpKernelContext* c) override {
    const Ticket* ticket = c->input(0).scalar<tensorflow::Variant>()().get<Ticket>();
    OP_REQUIRES(c, ticket != nullptr && ticket->lookup != nullptr, absl::InvalidArgumentError("this is no ticket"));
    const Tensor& grads = c->input(1);
    const std::shared_ptr<Lookup>& lookup = ticket->lookup;
    const bool has_width = grads.dims() > 0 && grads.dim_size(grads.dims() - 1) == dim_;
    OP_REQUIRES(c, has_width && grads.NumElements() == lookup->n_grads() * dim_,
                absl::InvalidArgumentError("gradients of shape " + grads.shape().DebugString() + " are not those of " +
                                           std::to_string(lookup->n_grads()) + " rows of dim " + std::to_string(dim_)));
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
      OP_REQUIRES_OK(c, Waitlist::instance().add(name_, {lookup, grads}));
    }
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({}), &out));
    out->scalar<float>()() = fused_ ? 0.0f : 1.0f;
  }

 private:
  bool fused_ = false;
};

// Applies what waits. `scale` is the sum of the anchor's gradients, 1 for each lookup: what scaled it scales them.
class ApplyOp : public TableOp {
 public:
  using TableOp::TableOp;
  void Compute(OpKernelContext* c) override {
    int64_t step = 0;
    OP_REQUIRES_OK(c, scalar(c, 0, &step));
    TableRef table;
    OP_REQUIRES_OK(c, get_table(&table));
    const double lr = rate_of(c->input(1).flat<double>()(0), table.get());
    OP_REQUIRES_OK(c, check_rate(lr, name_));
    std::vector<Waiting> all = Waitlist::instance().take(name_);
    // What is left of a table that had the name before, or of rows that a restore replaced, goes to nobody.
    const auto is_foreign = [&](const Waiting& one) { return one.lookup->table.get() != table.get(); };
    all.erase(std::remove_if(all.begin(), all.end(), is_foreign), all.end());
    const float factor = all.empty() ? 1.0f : c->input(2).flat<float>()(0) / static_cast<float>(all.size());
    es_apply_report report = {};
    if (!all.empty()) {
      const Gate gate(table.get());
      OP_REQUIRES_OK(c, status_of(gate.status(), name_));
      OP_REQUIRES_OK(c, status_of(apply(all, table.get(), step, lr, factor, &report), name_));
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
  int apply(const std::vector<Waiting>& all, es_table* table, int64_t step, double lr, float factor,
            es_apply_report* report) const {
    if (all.size() == 1 && factor == 1.0f)
      return update(*all[0].lookup, const_cast<float*>(all[0].grads.flat<float>().data()), step, lr, report);
    ByKey sums(dim_);
    for (const Waiting& one : all) {
      const int status = sums.add(*one.lookup, one.grads.flat<float>().data(), factor);
      if (status != ES_OK) return status;
    }
    return sums.apply(table, step, lr, report);
  }
};

// Forgets the gradients that wait, and says of how many lookups.
class ClearOp : public OpKernel {
 public:
  explicit ClearOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, c->GetAttr("table", &name_)); }
  void Compute(OpKernelContext* c) override {
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({}), &out));
    out->scalar<int64_t>()() = static_cast<int64_t>(Waitlist::instance().take(name_).size());
  }

 private:
  std::string name_;
};

// Gives (unique keys, found ones) of the training lookups since the last call, which began to count them.
class HitsOp : public OpKernel {
 public:
  explicit HitsOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, c->GetAttr("table", &name_)); }
  void Compute(OpKernelContext* c) override {
    Hits& hits = Hits::of(name_);
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({2}), &out));
    out->flat<int64_t>()(0) = hits.n_unique.exchange(0);
    out->flat<int64_t>()(1) = hits.n_found.exchange(0);
    hits.is_wanted = true;
  }

 private:
  std::string name_;
};

Status rows_shape(InferenceContext* c, int ids) {
  int64_t dim = 0;
  ShapeHandle rows;
  TF_RETURN_IF_ERROR(c->GetAttr("dim", &dim));
  TF_RETURN_IF_ERROR(c->Concatenate(c->input(ids), c->Vector(dim), &rows));
  c->set_output(0, rows);
  return absl::OkStatus();
}

Status bags_shape(InferenceContext* c, int offsets) {
  int64_t dim = 0;
  ShapeHandle bounds;
  TF_RETURN_IF_ERROR(c->GetAttr("dim", &dim));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(offsets), 1, &bounds));
  tensorflow::shape_inference::DimensionHandle n;
  if (c->ValueKnown(c->Dim(bounds, 0)))
    n = c->MakeDim(c->Value(c->Dim(bounds, 0)) - 1);
  else
    n = c->UnknownDim();
  c->set_output(0, c->Matrix(n, dim));
  return absl::OkStatus();
}

Status with_ticket(InferenceContext* c, Status rows) {
  c->set_output(1, c->Scalar());
  return rows;
}

Status scalar_shape(InferenceContext* c) {
  c->set_output(0, c->Scalar());
  return absl::OkStatus();
}

REGISTER_OP("EmbstoreFind")
    .Input("ids: int64")
    .Output("rows: float32")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) { return rows_shape(c, 0); });

REGISTER_OP("EmbstoreLookup")
    .Input("anchor: float32")
    .Input("ids: int64")
    .Input("step: int64")
    .Output("rows: float32")
    .Output("ticket: variant")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("fused: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) { return with_ticket(c, rows_shape(c, 1)); });

REGISTER_OP("EmbstorePooled")
    .Input("ids: int64")
    .Input("offsets: int64")
    .Input("weights: float32")
    .Output("rows: float32")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("mode: {'sum', 'mean', 'sqrtn'}")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) { return bags_shape(c, 1); });

REGISTER_OP("EmbstorePooledLookup")
    .Input("anchor: float32")
    .Input("ids: int64")
    .Input("offsets: int64")
    .Input("weights: float32")
    .Input("step: int64")
    .Output("rows: float32")
    .Output("ticket: variant")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("mode: {'sum', 'mean', 'sqrtn'}")
    .Attr("fused: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) { return with_ticket(c, bags_shape(c, 2)); });

REGISTER_OP("EmbstoreSettle")
    .Input("ticket: variant")
    .Input("grads: float32")
    .Input("step: int64")
    .Input("lr: float64")
    .Output("settled: float32")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("fused: bool")
    .SetIsStateful()
    .SetShapeFn(scalar_shape);

REGISTER_OP("EmbstoreApply")
    .Input("step: int64")
    .Input("lr: float64")
    .Input("scale: float32")
    .Output("counts: int64")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(4));
      return absl::OkStatus();
    });

REGISTER_OP("EmbstoreClear").Output("n_lookups: int64").Attr("table: string").SetIsStateful().SetShapeFn(scalar_shape);

REGISTER_OP("EmbstoreHits")
    .Output("counts: int64")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(2));
      return absl::OkStatus();
    });

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
