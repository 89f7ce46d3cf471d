// The loops over row bytes, compiled once for each instruction set (src/paths) and chosen at run time.
//
// 1. Everything here has internal linkage and includes core alone: a path's code never stands in for another's.
// 2. All paths give the same bits: the order of every operation is written, and nothing is fused.
#ifndef EMBSTORE_CPU_KERNELS_H_
#define EMBSTORE_CPU_KERNELS_H_

#include "../core/initializer.h"
#include "../core/optimizer.h"
#include "../core/pooling.h"
#include "../core/reduce.h"
#include "../core/rounding.h"
#include "../core/types.h"
#include "shared.h"

namespace embstore::cpu {

struct RowFormat {
  uint32_t dim;
  Dtype dtype;
  bool is_stochastic;
  uint32_t n_slots;  // float32 slots of a row
};

EMB_FN uint32_t value_bytes(const RowFormat& f) { return f.dim * size_of(f.dtype); }

// One row to be written, by the thread that owns its bucket.
struct RowTask {
  void* values;
  float* slots;
  uint32_t* control;  // of the bucket that names the row; null while no bucket does
  Meta* meta;
  const float* grad;  // or the values to assign
  uint64_t key;
};

struct UpdateContext {
  RowFormat format;
  Optimizer optimizer;
  UpdateScalars scalars;
  uint64_t stream;  // of stochastic rounding
  uint32_t t;
  uint32_t step;   // relative to step_base
  float* scratch;  // (2 * dim + n_slots,)
};

struct BirthContext {
  RowFormat format;
  Initializer init;
  uint32_t n_accumulators;
  float initial_accumulator;
  float* scratch;  // (dim + 3 + n_slots,)
};

struct SumTask {  // the gradient rows of one key
  const uint32_t* positions;
  uint64_t n;
  float* out;
};

struct Kernels {
  const char* name;
  // rows[i] to out row i, widened if out is float32 and the rows are not.
  void (*copy_rows)(const void* const* rows, uint64_t n, const RowFormat& format, Dtype out_dtype, void* out);
  // scratch: (kReduceLevels, dim)
  void (*sum_gradients)(const float* grads, uint32_t dim, const SumTask* tasks, uint64_t n, float* scratch);
  bool (*all_finite)(const float* x, uint64_t n);
  void (*update_rows)(const UpdateContext& context, const RowTask* tasks, uint64_t n);
  void (*birth_rows)(const BirthContext& context, const RowTask* tasks, uint64_t n);
  void (*initial_values)(const BirthContext& context, uint64_t key, void* out);
  void (*norms)(const void* const* rows, uint64_t n, const RowFormat& format, float* scratch, float* out);
  // scratch: (kReduceLevels + 1, dim); rows are float32
  void (*pool)(const float* rows, uint32_t dim, const float* weights, uint64_t n, PoolMode mode, float* scratch,
               float* out);
};

EMB_FN void prefetch_row(const void* row, uint32_t n_bytes) {
  const char* line = static_cast<const char*>(row);
  const uint32_t most = n_bytes < 512 ? n_bytes : 512;
  for (uint32_t at = 0; at < most; at += 64) __builtin_prefetch(line + at);
}

EMB_FN void prefetch_row_to_write(void* row, uint32_t n_bytes) {
  char* line = static_cast<char*>(row);
  const uint32_t most = n_bytes < 512 ? n_bytes : 512;
  for (uint32_t at = 0; at < most; at += 64) __builtin_prefetch(line + at, 1);
}

EMB_CONST uint64_t kPrefetchRows = 24;

// A constant size lets the compiler unroll the copy.
template <uint32_t n_bytes>
EMB_FN void copy_fixed(const void* const* rows, uint64_t n, char* out) {
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], n_bytes);
    copy_row_shared(out + i * n_bytes, rows[i], n_bytes);
  }
}

EMB_FN void copy_any(const void* const* rows, uint64_t n, uint32_t n_bytes, char* out) {
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], n_bytes);
    copy_row_shared(out + i * n_bytes, rows[i], n_bytes);
  }
}

EMB_FN void widen_row(const void* row, const RowFormat& f, float* out) {
  if (f.dtype == Dtype::kF32) return copy_row_shared(out, row, value_bytes(f));
  const uint16_t* half = static_cast<const uint16_t*>(row);
  if (f.dtype == Dtype::kBF16) {
    for (uint32_t j = 0; j < f.dim; ++j) out[j] = widen_bf16(load_shared(half + j));
  } else {
    for (uint32_t j = 0; j < f.dim; ++j) out[j] = widen_f16(load_shared(half + j));
  }
}

EMB_FN void copy_rows(const void* const* rows, uint64_t n, const RowFormat& f, Dtype out_dtype, void* out) {
  const uint32_t n_bytes = value_bytes(f);
  char* const target = static_cast<char*>(out);
  if (out_dtype != f.dtype) {
    for (uint64_t i = 0; i < n; ++i) {
      if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], n_bytes);
      widen_row(rows[i], f, reinterpret_cast<float*>(target) + i * f.dim);
    }
    return;
  }
  switch (n_bytes) {
    case 32:
      return copy_fixed<32>(rows, n, target);
    case 64:
      return copy_fixed<64>(rows, n, target);
    case 128:
      return copy_fixed<128>(rows, n, target);
    case 256:
      return copy_fixed<256>(rows, n, target);
    case 512:
      return copy_fixed<512>(rows, n, target);
    default:
      return copy_any(rows, n, n_bytes, target);
  }
}

EMB_FN void sum_gradients(const float* grads, uint32_t dim, const SumTask* tasks, uint64_t n, float* scratch) {
  for (uint64_t i = 0; i < n; ++i) {
    const SumTask& task = tasks[i];
    const uint64_t stride = dim;
    if (task.n <= kReduceBlock) {
      copy_row(task.out, grads + task.positions[0] * stride, dim);
      for (uint64_t k = 1; k < task.n; ++k) add_row(task.out, grads + task.positions[k] * stride, dim);
      continue;
    }
    BlockSum sum = {scratch, dim, 0};
    for (uint64_t k = 0; k < task.n; ++k) block_sum_add(sum, grads + task.positions[k] * stride);
    copy_row(task.out, block_sum_finish(sum), dim);
  }
}

EMB_FN bool all_finite(const float* x, uint64_t n) {
  uint32_t bad = 0;
  for (uint64_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>((bits_of(x[i]) & 0x7F800000u) == 0x7F800000u);
  return bad == 0;
}

// The words of stochastic rounding come four columns at a time.
EMB_FN void narrow_row_stochastic(const UpdateContext& c, uint64_t key, const float* w, uint16_t* out) {
  for (uint32_t j = 0; j < c.format.dim; j += 4) {
    const Words4 words = words_of(c.stream, key, Purpose::kRounding, j / 4, c.t);
    for (uint32_t lane = 0; lane < 4 && j + lane < c.format.dim; ++lane)
      store_shared(out + j + lane, narrow_stochastic(c.format.dtype, w[j + lane], uniform_of(words.x[lane])));
  }
}

EMB_FN void narrow_row(Dtype dtype, uint32_t dim, const float* w, uint16_t* out) {
  if (dtype == Dtype::kBF16) {
    for (uint32_t j = 0; j < dim; ++j) store_shared(out + j, narrow_bf16(w[j]));
  } else {
    for (uint32_t j = 0; j < dim; ++j) store_shared(out + j, narrow_f16(w[j]));
  }
}

EMB_FN void store_row(const RowFormat& f, const float* w, void* out) {
  if (f.dtype == Dtype::kF32)
    copy_row_shared(out, w, value_bytes(f));
  else
    narrow_row(f.dtype, f.dim, w, static_cast<uint16_t*>(out));
}

// A meta record's step and freq are one 64-bit word to readers.
EMB_FN void raise_step(Meta* meta, uint32_t step) {
  if (meta->step < step) __atomic_store_n(&meta->step, step, __ATOMIC_RELAXED);
}

EMB_FN void update_one(const UpdateContext& c, const RowTask& task) {
  const RowFormat& f = c.format;
  const bool is_in_place = f.dtype == Dtype::kF32 && !EMB_TSAN;
  float* const w = is_in_place ? static_cast<float*>(task.values) : c.scratch;
  const float* g = task.grad;
  if (!is_in_place) widen_row(task.values, f, w);
  if (is_conditioned(c.optimizer)) {
    float* const conditioned = c.scratch + f.dim;
    copy_row(conditioned, task.grad, f.dim);
    condition_gradient(c.optimizer, c.scalars, w, conditioned, f.dim);
    g = conditioned;
  }
  if (is_in_place) begin_write(task.control);
  update_row(c.optimizer, c.scalars, w, task.slots, g, f.dim);
  if (!is_in_place) {
    begin_write(task.control);
    if (f.is_stochastic && f.dtype != Dtype::kF32)
      narrow_row_stochastic(c, task.key, w, static_cast<uint16_t*>(task.values));
    else
      store_row(f, w, task.values);
  }
  end_write(task.control);
  raise_step(task.meta, c.step);
}

EMB_FN void update_rows(const UpdateContext& c, const RowTask* tasks, uint64_t n) {
  constexpr uint64_t kAhead = 8;
  const uint32_t n_bytes = value_bytes(c.format);
  const uint32_t slot_bytes = c.format.n_slots * 4;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      const RowTask& next = tasks[i + kAhead];
      prefetch_row_to_write(next.values, n_bytes);
      prefetch_row_to_write(next.slots, slot_bytes);
      prefetch_row(next.grad, c.format.dim * 4);
      __builtin_prefetch(next.meta, 1);
    }
    update_one(c, tasks[i]);
  }
}

EMB_FN void initial_row(const BirthContext& c, uint64_t key, float* out) {
  for (uint32_t block = 0; 4 * block < c.format.dim; ++block) initial_block(c.init, key, block, out + 4 * block);
}

EMB_FN void initial_values(const BirthContext& c, uint64_t key, void* out) {
  initial_row(c, key, c.scratch);
  store_row(c.format, c.scratch, out);
}

EMB_FN void birth_slots(const BirthContext& c, float* slots) {
  for (uint32_t s = 0; s < c.format.n_slots; ++s) slots[s] = s < c.n_accumulators ? c.initial_accumulator : 0.0f;
}

EMB_FN void birth_rows(const BirthContext& c, const RowTask* tasks, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) {
    initial_values(c, tasks[i].key, tasks[i].values);
    birth_slots(c, tasks[i].slots);
  }
}

EMB_FN void norms(const void* const* rows, uint64_t n, const RowFormat& f, float* scratch, float* out) {
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], value_bytes(f));
    const float* w = static_cast<const float*>(rows[i]);
    if (f.dtype != Dtype::kF32) {
      widen_row(rows[i], f, scratch);
      w = scratch;
    }
    out[i] = row_norm(w, f.dim);
  }
}

EMB_FN void pool(const float* rows, uint32_t dim, const float* weights, uint64_t n, PoolMode mode, float* scratch,
                 float* out) {
  if (n == 0) {
    for (uint32_t j = 0; j < dim; ++j) out[j] = 0.0f;
    return;
  }
  float* const weighted = scratch + static_cast<uint64_t>(kReduceLevels) * dim;
  BlockSum sum = {scratch, dim, 0};
  for (uint64_t i = 0; i < n; ++i) {
    const float* row = rows + i * dim;
    if (weights != nullptr) {
      for (uint32_t j = 0; j < dim; ++j) weighted[j] = row[j] * weights[i];
      row = weighted;
    }
    block_sum_add(sum, row);
  }
  const float* total = block_sum_finish(sum);
  const float divisor = pool_divisor(mode, n);
  for (uint32_t j = 0; j < dim; ++j) out[j] = mode == PoolMode::kSum ? total[j] : total[j] / divisor;
}

EMB_FN Kernels make_kernels(const char* name) {
  return Kernels{name, copy_rows, sum_gradients, all_finite, update_rows, birth_rows, initial_values, norms, pool};
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_KERNELS_H_
