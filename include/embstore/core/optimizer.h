// The optimizers: one row's values and slots from one row's summed gradient; docs/semantics.md, section 6.
//
// 1. Pure functions on float32; 16-bit rows are widened before and rounded after by the engine.
// 2. A row that is absent from a batch is left alone: moments and decay are lazy.
// 3. Sources: torch.optim (SGD, Adagrad, SparseAdam, AdamW), FBGEMM (row-wise Adagrad), TensorFlow (FTRL-Proximal,
//    McMahan et al., KDD 2013).
#ifndef EMBSTORE_CORE_OPTIMIZER_H_
#define EMBSTORE_CORE_OPTIMIZER_H_

#include "portable.h"
#include "reduce.h"

namespace embstore {

enum class OptimizerKind : int32_t { kSgd = 0, kAdagrad = 1, kRowWiseAdagrad = 2, kAdam = 3, kAdamW = 4, kFtrl = 5 };

// What a table's optimizer is, as configured.
struct Optimizer {
  OptimizerKind kind;
  double p[4];  // es_optimizer_kind says which is which
  float clip_norm;
  float clip_value;
  double weight_decay;
};

// The float32 constants of one call.
struct UpdateScalars {
  float lr;
  float a;      // momentum, eps, eps, eps, eps, l1
  float b;      // Adam: 1 - beta1; FTRL: 2 * l2 + beta / lr
  float c;      // Adam: 1 - beta2
  float scale;  // Adam: lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  float decay;  // AdamW: the factor 1 - lr * weight_decay; others: what multiplies w in g + decay * w
  bool nesterov;
};

EMB_FN uint32_t slot_floats(const Optimizer& opt, uint32_t dim) {
  switch (opt.kind) {
    case OptimizerKind::kSgd:
      return opt.p[0] != 0.0 ? dim : 0;
    case OptimizerKind::kAdagrad:
      return dim;
    case OptimizerKind::kRowWiseAdagrad:
      return 1;
    default:
      return 2 * dim;
  }
}

// How many of a row's slots, from the first, are born with the initial accumulator; the others are born 0.
EMB_FN uint32_t n_accumulators(const Optimizer& opt, uint32_t dim) {
  const bool has_dim = opt.kind == OptimizerKind::kAdagrad || opt.kind == OptimizerKind::kFtrl;
  return has_dim ? dim : opt.kind == OptimizerKind::kRowWiseAdagrad ? 1 : 0;
}

// Whether the optimizer keeps powers of its betas.
EMB_FN bool has_moments(const Optimizer& opt) {
  return opt.kind == OptimizerKind::kAdam || opt.kind == OptimizerKind::kAdamW;
}

EMB_FN UpdateScalars update_scalars(const Optimizer& opt, double lr, double beta1_power, double beta2_power) {
  UpdateScalars s = {static_cast<float>(lr), 0, 0, 0, 0, static_cast<float>(opt.weight_decay), false};
  switch (opt.kind) {
    case OptimizerKind::kSgd:
      s.a = static_cast<float>(opt.p[0]);
      s.nesterov = opt.p[1] != 0.0;
      break;
    case OptimizerKind::kAdagrad:
    case OptimizerKind::kRowWiseAdagrad:
      s.a = static_cast<float>(opt.p[1]);
      break;
    case OptimizerKind::kAdam:
    case OptimizerKind::kAdamW:
      s.a = static_cast<float>(opt.p[2]);
      s.b = static_cast<float>(1.0 - opt.p[0]);
      s.c = static_cast<float>(1.0 - opt.p[1]);
      s.scale = static_cast<float>(lr * square_root(1.0 - beta2_power) / (1.0 - beta1_power));
      if (opt.kind == OptimizerKind::kAdamW) s.decay = static_cast<float>(1.0 - lr * opt.weight_decay);
      break;
    case OptimizerKind::kFtrl:
      s.a = static_cast<float>(opt.p[1]);
      s.b = static_cast<float>(2.0 * opt.p[2] + opt.p[3] / lr);
      break;
  }
  return s;
}

EMB_FN float clip_to_value(float g, float c) { return g < -c ? -c : (g > c ? c : g); }

// What clip_norm multiplies a gradient of this norm by; 1 leaves it as it is.
EMB_FN float norm_ratio(const Optimizer& opt, float norm) { return norm > opt.clip_norm ? opt.clip_norm / norm : 1.0f; }

EMB_FN bool has_coupled_decay(const Optimizer& opt) {
  return opt.weight_decay != 0.0 && opt.kind != OptimizerKind::kAdamW;
}
EMB_FN float plus_decay(float g, float decay, float w) { return g + decay * w; }

// Clipping, then coupled weight decay; g is changed in place.
EMB_FN void condition_gradient(const Optimizer& opt, const UpdateScalars& s, const float* w, float* g, uint32_t dim) {
  if (opt.clip_value > 0.0f) {
    const float c = opt.clip_value;
    for (uint32_t j = 0; j < dim; ++j) g[j] = clip_to_value(g[j], c);
  }
  if (opt.clip_norm > 0.0f) {
    const float ratio = norm_ratio(opt, row_norm(g, dim));
    if (ratio != 1.0f)
      for (uint32_t j = 0; j < dim; ++j) g[j] = g[j] * ratio;
  }
  if (has_coupled_decay(opt)) {
    const float d = s.decay;
    for (uint32_t j = 0; j < dim; ++j) g[j] = plus_decay(g[j], d, w[j]);
  }
}

EMB_FN bool is_conditioned(const Optimizer& opt) {
  return opt.clip_value > 0.0f || opt.clip_norm > 0.0f || has_coupled_decay(opt);
}

// Whether a column's new value depends on other columns, by sums along the row.
EMB_FN bool has_row_sums(const Optimizer& opt) {
  return opt.clip_norm > 0.0f || opt.kind == OptimizerKind::kRowWiseAdagrad;
}

EMB_FN void descend(float* __restrict w, const float* __restrict g, float rate, uint32_t dim) {
  for (uint32_t j = 0; j < dim; ++j) w[j] = w[j] - rate * g[j];
}

EMB_FN void update_sgd(const UpdateScalars& s, float* __restrict w, float* __restrict slots, const float* __restrict g,
                       uint32_t dim) {
  if (s.a == 0.0f) return descend(w, g, s.lr, dim);
  for (uint32_t j = 0; j < dim; ++j) {
    const float b = s.a * slots[j] + g[j];
    slots[j] = b;
    const float u = s.nesterov ? g[j] + s.a * b : b;
    w[j] = w[j] - s.lr * u;
  }
}

EMB_FN void update_adagrad(const UpdateScalars& s, float* __restrict w, float* __restrict slots,
                           const float* __restrict g, uint32_t dim) {
  for (uint32_t j = 0; j < dim; ++j) {
    const float a = slots[j] + g[j] * g[j];
    slots[j] = a;
    w[j] = w[j] - (s.lr * g[j]) / (square_root(a) + s.a);
  }
}

// The one accumulator of a row, and what its gradient is multiplied by then.
EMB_FN float rowwise_accumulated(float a, float sum_of_squares, uint32_t dim) {
  return a + sum_of_squares / static_cast<float>(static_cast<int32_t>(dim));
}
EMB_FN float rowwise_rate(const UpdateScalars& s, float a) { return s.lr / (square_root(a) + s.a); }

EMB_FN void update_rowwise_adagrad(const UpdateScalars& s, float* __restrict w, float* __restrict slots,
                                   const float* __restrict g, uint32_t dim) {
  const float a = rowwise_accumulated(slots[0], row_sum_of_squares(g, dim), dim);
  slots[0] = a;
  descend(w, g, rowwise_rate(s, a), dim);
}

EMB_FN void update_adam(const UpdateScalars& s, float* __restrict w, float* __restrict slots, const float* __restrict g,
                        uint32_t dim, bool is_decoupled) {
  float* __restrict exp_avg = slots;
  float* __restrict exp_avg_sq = slots + dim;
  const float factor = is_decoupled ? s.decay : 1.0f;
  for (uint32_t j = 0; j < dim; ++j) {
    const float m = exp_avg[j] + (g[j] - exp_avg[j]) * s.b;
    const float v = exp_avg_sq[j] + (g[j] * g[j] - exp_avg_sq[j]) * s.c;
    exp_avg[j] = m;
    exp_avg_sq[j] = v;
    w[j] = w[j] * factor - (s.scale * m) / (square_root(v) + s.a);
  }
}

EMB_FN void update_ftrl(const UpdateScalars& s, float* __restrict w, float* __restrict slots, const float* __restrict g,
                        uint32_t dim) {
  float* __restrict accumulator = slots;
  float* __restrict linear = slots + dim;
  for (uint32_t j = 0; j < dim; ++j) {
    const float n = accumulator[j];
    const float n2 = n + g[j] * g[j];
    const float root = square_root(n2);
    const float sigma = (root - square_root(n)) / s.lr;
    const float z = (linear[j] + g[j]) - sigma * w[j];
    accumulator[j] = n2;
    linear[j] = z;
    const float l1 = z < 0.0f ? -s.a : s.a;
    const float moved = (l1 - z) / (root / s.lr + s.b);
    w[j] = absolute(z) <= s.a ? 0.0f : moved;
  }
}

// Columns of a row, or a whole one, by an optimizer whose rule is the same for each column: slots[k * dim + j] is the
// k-th of column j.
EMB_FN void update_columns(const Optimizer& opt, const UpdateScalars& s, float* w, float* slots, const float* g,
                           uint32_t dim) {
  switch (opt.kind) {
    case OptimizerKind::kSgd:
      return update_sgd(s, w, slots, g, dim);
    case OptimizerKind::kAdagrad:
      return update_adagrad(s, w, slots, g, dim);
    case OptimizerKind::kRowWiseAdagrad:
      return;
    case OptimizerKind::kAdam:
      return update_adam(s, w, slots, g, dim, false);
    case OptimizerKind::kAdamW:
      return update_adam(s, w, slots, g, dim, true);
    case OptimizerKind::kFtrl:
      return update_ftrl(s, w, slots, g, dim);
  }
}

EMB_FN void update_row(const Optimizer& opt, const UpdateScalars& s, float* w, float* slots, const float* g,
                       uint32_t dim) {
  if (opt.kind == OptimizerKind::kRowWiseAdagrad) return update_rowwise_adagrad(s, w, slots, g, dim);
  update_columns(opt, s, w, slots, g, dim);
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_OPTIMIZER_H_
