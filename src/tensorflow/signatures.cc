// What the TensorFlow ops take and give, and of what shapes.
//
// All ops are stateful, so that none is merged, folded or dropped.
#include "absl/status/status.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace embstore_tensorflow {

using Status = absl::Status;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

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
    .Attr("anchor: shape")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      tensorflow::TensorShape anchor;
      ShapeHandle shape;
      TF_RETURN_IF_ERROR(c->GetAttr("anchor", &anchor));
      TF_RETURN_IF_ERROR(c->MakeShapeFromTensorShape(anchor, &shape));
      c->set_output(0, shape);
      return absl::OkStatus();
    });

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

}  // namespace embstore_tensorflow
