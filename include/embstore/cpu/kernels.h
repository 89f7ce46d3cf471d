// The loops over row bytes, compiled once for each instruction set (src/paths) and chosen at run time.
//
// 1. Everything here has internal linkage and, like births.h, includes core alone: a path's code never stands in for
// another's.
// 2. All paths give the same bits: the order of every operation is written, and nothing is fused.
#ifndef EMBSTORE_CPU_KERNELS_H_
#define EMBSTORE_CPU_KERNELS_H_

#include "../core/initializer.h"
#include "../core/optimizer.h"
#include "../core/pooling.h"
#include "../core/reduce.h"
#include "../core/rounding.h"
#include "../core/types.h"
#include "births.h"
#include "format.h"
#include "lookup.h"
#include "select.h"
#include "slab.h"

namespace embstore::cpu {

// A row to be born, which no reader sees yet.
struct RowTask {
  void* values;
  float* slots;
  uint64_t key;
};

struct UpdateContext {
  Slab values, slots, meta;
  uint32_t* versions;
  // By the numbers of distinct keys.
  const uint32_t* rows;         // row ids
  const float* const* vectors;  // summed gradients, or values to be assigned
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

struct RowPiece {  // columns of a batch of blocks that belong to one row
  char* to;
  uint32_t first_column;
  uint32_t n_bytes;
};

// The gradient of each position of a batch: row i of `base`, or what pointers and weights say.
struct GradientView {
  const float* base;
  const float* const* pointers;  // (n,) or null
  const float* weights;          // (n,), or null: ones
  uint32_t dim;
};

struct PoolRows {  // one bag
  const void* const* rows;
  uint64_t n;
  uint64_t n_ahead;      // pointers that may be read, those of later bags too
  const float* weights;  // (n,) or null
  PoolMode mode;
};

struct SumTask {  // the gradient rows of one key
  const uint32_t* positions;
  uint64_t n;
  float* out;
};

struct Kernels {
  const char* name;
  // Where each key's row lies, or the default row; words (n,) are their row words, versions (n,) for who needs them.
  // How many have a row.
  uint64_t (*find_rows)(const FindContext& context, const int64_t* keys, uint64_t n, const void** rows,
                        uint32_t* words);
  uint64_t (*find_rows_versioned)(const FindContext& context, const int64_t* keys, uint64_t n, const void** rows,
                                  uint32_t* words, ReadVersions* versions);
  // How many distinct keys there are.
  uint64_t (*dedup)(const DedupContext& context);
  // The part of each key by its hash, and how many keys a part has: counts (n_parts,), which this adds to.
  void (*split_keys)(const HashKeys& hash_keys, const int64_t* keys, uint64_t n, uint32_t n_parts, uint32_t* counts,
                     uint8_t* parts);
  void (*find_cells)(const View& view, const uint64_t* keys, const uint64_t* hashes, uint64_t n, Cell* out);
  // Adds occurrences to the freq of the rows that were found.
  void (*touch_rows)(const Slab& meta, const uint32_t* rows, const uint8_t* status, const uint32_t* occurrences,
                     uint64_t n);
  // rows[i] to out row i, widened if out is float32 and the rows are not; past the caches if out is_streamed.
  void (*copy_rows)(const void* const* rows, uint64_t n, const RowFormat& format, Dtype out_dtype, bool is_streamed,
                    void* out);
  // Whether all sums are finite. scratch: (kReduceLevels + 1, dim)
  bool (*sum_gradients)(const GradientView& grads, const SumTask* tasks, uint64_t n, float* scratch);
  bool (*all_finite)(const float* x, uint64_t n);
  bool (*all_rows_finite)(const float* const* rows, uint64_t n, uint32_t dim);
  void (*update_rows)(const UpdateContext& context, const uint32_t* uniques, uint64_t n);
  void (*assign_rows)(const UpdateContext& context, const uint32_t* uniques, uint64_t n);
  void (*birth_rows)(const BirthContext& context, const RowTask* tasks, uint64_t n);
  void (*initial_values)(const BirthContext& context, uint64_t key, void* out);
  // scratch: (kReduceLevels + 2, dim)
  void (*pool)(const PoolRows& bag, const RowFormat& format, float* scratch, float* out);
  void (*select_rows)(const SelectContext& context, uint64_t first, uint64_t n, uint64_t* certain, uint64_t* open);
  // Adds to words [first, first + n) of `selected` what norms decide of those that are open. scratch: a row
  void (*select_by_norm)(const SelectContext& context, const RowFormat& format, uint64_t first, uint64_t n,
                         const uint64_t* open, float* scratch, uint64_t* selected);
};

EMB_FN void prefetch_row_to_write(void* row, uint32_t n_bytes) {
  char* line = static_cast<char*>(row);
  const uint32_t most = n_bytes < 512 ? n_bytes : 512;
  for (uint32_t at = 0; at < most; at += 64) __builtin_prefetch(line + at, 1);
}

#ifndef EMB_ROWS_AHEAD  // rows prefetched beyond the one that is copied
#define EMB_ROWS_AHEAD 24
#endif
EMB_CONST uint64_t kPrefetchRows = EMB_ROWS_AHEAD;
#ifndef EMB_UPDATES_AHEAD  // rows prefetched beyond the one that is updated
#define EMB_UPDATES_AHEAD 8
#endif

#ifdef EMB_BENCH_NO_ACCOUNTING  // an experiment: what the bookkeeping of freq and step costs
EMB_CONST bool kHasAccounting = false;
#else
EMB_CONST bool kHasAccounting = true;
#endif

#if defined(__SSE2__) && !EMB_TSAN
// Both at multiples of 16 bytes.
EMB_FN void stream_row(char* out, const void* row, uint32_t n_bytes) {
  const char* from = static_cast<const char*>(row);
#if defined(__AVX512F__)
  if (n_bytes % 64 == 0 && reinterpret_cast<uint64_t>(out) % 64 == 0) {
    for (uint32_t at = 0; at < n_bytes; at += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at), _mm512_loadu_si512(from + at));
    return;
  }
#endif
  for (uint32_t at = 0; at < n_bytes; at += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
}
EMB_FN void end_streaming() { _mm_sfence(); }
#else
EMB_FN void stream_row(char* out, const void* row, uint32_t n_bytes) { copy_row_shared(out, row, n_bytes); }
EMB_FN void end_streaming() {}
#endif

// A constant size lets the compiler unroll the copy.
template <uint32_t kBytes, bool is_streamed>
EMB_FN void copy_loop(const void* const* rows, uint64_t n, uint32_t any_bytes, char* out) {
  const uint32_t n_bytes = kBytes != 0 ? kBytes : any_bytes;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], n_bytes);
    if (is_streamed)
      stream_row(out + i * n_bytes, rows[i], n_bytes);
    else
      copy_row_shared(out + i * n_bytes, rows[i], n_bytes);
  }
  if (is_streamed) end_streaming();
}

template <bool is_streamed>
EMB_FN void copy_same(const void* const* rows, uint64_t n, uint32_t n_bytes, char* out) {
  switch (n_bytes) {
    case 32:
      return copy_loop<32, is_streamed>(rows, n, 0, out);
    case 64:
      return copy_loop<64, is_streamed>(rows, n, 0, out);
    case 128:
      return copy_loop<128, is_streamed>(rows, n, 0, out);
    case 256:
      return copy_loop<256, is_streamed>(rows, n, 0, out);
    case 512:
      return copy_loop<512, is_streamed>(rows, n, 0, out);
    default:
      return copy_loop<0, is_streamed>(rows, n, n_bytes, out);
  }
}

EMB_FN void copy_rows(const void* const* rows, uint64_t n, const RowFormat& f, Dtype out_dtype, bool is_streamed,
                      void* out) {
  const uint32_t n_bytes = value_bytes(f);
  char* const target = static_cast<char*>(out);
  if (out_dtype != f.dtype) {
    for (uint64_t i = 0; i < n; ++i) {
      if (i + kPrefetchRows < n) prefetch_row(rows[i + kPrefetchRows], n_bytes);
      widen_row(rows[i], f, reinterpret_cast<float*>(target) + i * f.dim);
    }
    return;
  }
  if (is_streamed && n_bytes % 16 == 0 && reinterpret_cast<uint64_t>(out) % 16 == 0) {
    copy_same<true>(rows, n, n_bytes, target);
  } else {
    copy_same<false>(rows, n, n_bytes, target);
  }
}

EMB_FN Meta* meta_of(const Slab& meta, uint32_t row) { return reinterpret_cast<Meta*>(slab_row(meta, row)); }

// 0 is ES_FOUND; the row of a key that was not is any number.
EMB_FN void touch_rows(const Slab& meta, const uint32_t* rows, const uint8_t* status, const uint32_t* occurrences,
                       uint64_t n) {
  constexpr uint64_t kAhead = 32;
  if (!kHasAccounting) return;
  for (uint64_t u = 0; u < n; ++u) {
    if (u + kAhead < n && status[u + kAhead] == 0) __builtin_prefetch(meta_of(meta, rows[u + kAhead]), 1);
    if (status[u] != 0) continue;
    uint32_t* const freq = &meta_of(meta, rows[u])->freq;
    __atomic_store_n(freq, saturating_add(*freq, occurrences[u]), __ATOMIC_RELAXED);
  }
}

EMB_FN const float* gradient_at(const GradientView& grads, uint32_t position) {
  return grads.pointers != nullptr ? grads.pointers[position] : grads.base + uint64_t{position} * grads.dim;
}

// scratch: a row. The gradient of a position, times its weight.
EMB_FN const float* weighted_gradient(const GradientView& grads, uint32_t position, float* scratch) {
  const float* const row = gradient_at(grads, position);
  if (grads.weights == nullptr) return row;
  for (uint32_t j = 0; j < grads.dim; ++j) scratch[j] = row[j] * grads.weights[position];
  return scratch;
}

EMB_FN bool all_finite(const float* x, uint64_t n) {
  uint32_t bad = 0;
  for (uint64_t i = 0; i < n; ++i) bad |= static_cast<uint32_t>((bits_of(x[i]) & 0x7F800000u) == 0x7F800000u);
  return bad == 0;
}

EMB_FN bool all_rows_finite(const float* const* rows, uint64_t n, uint32_t dim) {
  constexpr uint64_t kAhead = 16;
  bool is_finite = true;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) prefetch_row(rows[i + kAhead], dim * 4);
    is_finite &= all_finite(rows[i], dim);
  }
  return is_finite;
}

// The positions of the tasks follow each other in memory, or nearly: those of the next task are prefetched too.
EMB_FN bool sum_gradients(const GradientView& grads, const SumTask* tasks, uint64_t n, float* scratch) {
  constexpr uint64_t kAhead = 12;
  if (n == 0) return true;
  const uint32_t dim = grads.dim;
  const uint32_t* const end = tasks[n - 1].positions + tasks[n - 1].n;
  float* const weighted = scratch + uint64_t{kReduceLevels} * dim;
  bool is_finite = true;
  for (uint64_t i = 0; i < n; ++i) {
    const SumTask& task = tasks[i];
    const bool is_short = task.n <= kReduceBlock;
    BlockSum sum = {scratch, dim, 0};
    for (uint64_t k = 0; k < task.n; ++k) {
      const uint32_t* const position = task.positions + k;
      if (position + kAhead < end) prefetch_row(gradient_at(grads, position[kAhead]), dim * 4);
      const float* const row = weighted_gradient(grads, *position, weighted);
      if (!is_short)
        block_sum_add(sum, row);
      else if (k == 0)
        copy_row(task.out, row, dim);
      else
        add_row(task.out, row, dim);
    }
    if (!is_short) copy_row(task.out, block_sum_finish(sum), dim);
    is_finite &= all_finite(task.out, dim);
  }
  return is_finite;
}

EMB_FN void narrow_stochastic_loop(Dtype dtype, const float* w, const float* uniforms, uint32_t n, uint16_t* out) {
  for (uint32_t j = 0; j < n; ++j) store_shared(out + j, narrow_stochastic(dtype, w[j], uniforms[j]));
}

EMB_FN void narrow_row_stochastic(const UpdateContext& c, uint64_t key, const float* w, uint16_t* out) {
  const uint32_t row_blocks = (c.format.dim + kBlockColumns - 1) / kBlockColumns;
  BlockBatch batch = {};
  for (uint32_t block = 0; block < row_blocks;) {
    const uint32_t first = block * kBlockColumns;
    block = batch_add(&batch, 0, key, block, row_blocks);
    draw_uniforms(c.stream, Purpose::kRounding, c.t, block - first / kBlockColumns, &batch);
    const uint32_t n = c.format.dim - first < kBatchColumns ? c.format.dim - first : kBatchColumns;
    if (c.format.dtype == Dtype::kBF16)
      narrow_stochastic_loop(Dtype::kBF16, w + first, batch.values, n, out + first);
    else
      narrow_stochastic_loop(Dtype::kF16, w + first, batch.values, n, out + first);
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
  if (kHasAccounting && meta->step < step) __atomic_store_n(&meta->step, step, __ATOMIC_RELAXED);
}

EMB_FN void update_one(const UpdateContext& c, uint32_t row, const float* grad) {
  const RowFormat& f = c.format;
  const bool is_in_place = f.dtype == Dtype::kF32 && !EMB_TSAN;
  void* const values = slab_row(c.values, row);
  float* const slots = f.n_slots > 0 ? reinterpret_cast<float*>(slab_row(c.slots, row)) : nullptr;
  Meta* const meta = meta_of(c.meta, row);
  uint32_t* const version = c.versions + version_of(row);
  float* const w = is_in_place ? static_cast<float*>(values) : c.scratch;
  const float* g = grad;
  if (!is_in_place) widen_row(values, f, w);
  if (is_conditioned(c.optimizer)) {
    float* const conditioned = c.scratch + f.dim;
    copy_row(conditioned, grad, f.dim);
    condition_gradient(c.optimizer, c.scalars, w, conditioned, f.dim);
    g = conditioned;
  }
  if (is_in_place) begin_write(version);
  update_row(c.optimizer, c.scalars, w, slots, g, f.dim);
  if (!is_in_place) {
    begin_write(version);
    if (f.is_stochastic && f.dtype != Dtype::kF32)
      narrow_row_stochastic(c, meta->key, w, static_cast<uint16_t*>(values));
    else
      store_row(f, w, values);
  }
  end_write(version);
  raise_step(meta, c.step);
}

EMB_FN void update_rows(const UpdateContext& c, const uint32_t* uniques, uint64_t n) {
  constexpr uint64_t kAhead = EMB_UPDATES_AHEAD;
  const uint32_t n_bytes = value_bytes(c.format);
  const uint32_t slot_bytes = c.format.n_slots * 4;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      const uint32_t next = uniques[i + kAhead];
      const uint32_t row = c.rows[next];
      prefetch_row_to_write(slab_row(c.values, row), n_bytes);
      if (slot_bytes > 0) prefetch_row_to_write(slab_row(c.slots, row), slot_bytes);
      prefetch_row(c.vectors[next], c.format.dim * 4);
      if (kHasAccounting) __builtin_prefetch(meta_of(c.meta, row), 1);
    }
    update_one(c, c.rows[uniques[i]], c.vectors[uniques[i]]);
  }
}

EMB_FN void assign_rows(const UpdateContext& c, const uint32_t* uniques, uint64_t n) {
  constexpr uint64_t kAhead = 8;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      const uint32_t next = uniques[i + kAhead];
      prefetch_row_to_write(slab_row(c.values, c.rows[next]), value_bytes(c.format));
      prefetch_row(c.vectors[next], c.format.dim * 4);
      __builtin_prefetch(meta_of(c.meta, c.rows[next]), 1);
    }
    const uint32_t row = c.rows[uniques[i]];
    uint32_t* const version = c.versions + version_of(row);
    begin_write(version);
    store_row(c.format, c.vectors[uniques[i]], slab_row(c.values, row));
    end_write(version);
    raise_step(meta_of(c.meta, row), c.step);
  }
}

EMB_FN void birth_slots(const BirthContext& c, float* slots) {
  for (uint32_t s = 0; s < c.format.n_slots; ++s) slots[s] = s < c.n_accumulators ? c.initial_accumulator : 0.0f;
}

// Draws the blocks of a batch and gives their bytes to the rows; pieces[i] is where those of one row go.
EMB_FN void birth_batch(const BirthContext& c, uint32_t n_blocks, BlockBatch* batch, const RowPiece* pieces,
                        uint32_t n) {
  uint16_t halves[kBatchColumns];
  draw_values(c.init, n_blocks, batch);
  const char* values = reinterpret_cast<const char*>(batch->values);
  if (c.format.dtype != Dtype::kF32) {
    narrow_row(c.format.dtype, kBatchColumns, batch->values, halves);
    values = reinterpret_cast<const char*>(halves);
  }
  for (uint32_t i = 0; i < n; ++i)
    copy_row_shared(pieces[i].to, values + pieces[i].first_column * size_of(c.format.dtype), pieces[i].n_bytes);
}

// Blocks of one row follow each other, and rows each other, so that batches are full whatever the dim.
EMB_FN void birth_rows(const BirthContext& c, const RowTask* tasks, uint64_t n) {
  constexpr uint64_t kAhead = 8;
  const uint32_t n_bytes = value_bytes(c.format);
  const uint32_t block_bytes = kBlockColumns * size_of(c.format.dtype);
  const uint32_t row_blocks = (c.format.dim + kBlockColumns - 1) / kBlockColumns;
  BlockBatch batch = {};
  RowPiece pieces[kBatchBlocks];
  uint32_t n_blocks = 0, n_pieces = 0;
  for (uint64_t row = 0; row < n; ++row) {
    if (row + kAhead < n) prefetch_row_to_write(tasks[row + kAhead].values, n_bytes);
    birth_slots(c, tasks[row].slots);
    for (uint32_t block = 0; block < row_blocks;) {
      const uint32_t end = batch_add(&batch, n_blocks, tasks[row].key, block, row_blocks);
      const uint32_t first_byte = block * block_bytes;
      const uint32_t end_byte = end < row_blocks ? end * block_bytes : n_bytes;
      pieces[n_pieces++] =
          RowPiece{static_cast<char*>(tasks[row].values) + first_byte, n_blocks * kBlockColumns, end_byte - first_byte};
      n_blocks += end - block;
      block = end;
      if (n_blocks < kBatchBlocks && row + 1 < n) continue;
      birth_batch(c, n_blocks, &batch, pieces, n_pieces);
      n_blocks = n_pieces = 0;
    }
  }
}

EMB_FN void initial_values(const BirthContext& c, uint64_t key, void* out) {
  BirthContext alone = c;
  alone.format.n_slots = 0;
  const RowTask task = {out, nullptr, key};
  birth_rows(alone, &task, 1);
}

#if defined(__GNUC__) && !EMB_TSAN
typedef float Lanes __attribute__((vector_size(64)));
constexpr uint32_t kLanes = 16;

// A bag of one block of float32 rows, whose sums need not leave the registers: kN vectors of columns from `first` on.
// -0 is what any number may be added to without a change.
template <uint32_t kN>
EMB_FN void pool_columns(const PoolRows& bag, uint32_t first, float divisor, float* out) {
  Lanes sum[kN];
  for (uint32_t v = 0; v < kN; ++v) sum[v] = -Lanes{};
  for (uint64_t i = 0; i < bag.n; ++i) {
    const float* const row = static_cast<const float*>(bag.rows[i]) + first;
    for (uint32_t v = 0; v < kN; ++v) {
      Lanes lanes;
      __builtin_memcpy(&lanes, row + v * kLanes, sizeof lanes);
      if (bag.weights != nullptr) lanes = lanes * bag.weights[i];
      sum[v] = sum[v] + lanes;
    }
  }
  for (uint32_t v = 0; v < kN; ++v) {
    if (bag.mode != PoolMode::kSum) sum[v] = sum[v] / divisor;
    __builtin_memcpy(out + first + v * kLanes, &sum[v], sizeof sum[v]);
  }
}

EMB_FN bool pool_block(const PoolRows& bag, uint32_t dim, float* out) {
  if (bag.n > kReduceBlock || dim % kLanes != 0) return false;
  for (uint64_t i = kPrefetchRows; i < bag.n + kPrefetchRows && i < bag.n_ahead; ++i)
    prefetch_row(bag.rows[i], dim * 4);
  const float divisor = pool_divisor(bag.mode, bag.n);
  uint32_t j = 0;
  for (; j + 4 * kLanes <= dim; j += 4 * kLanes) pool_columns<4>(bag, j, divisor, out);
  for (; j < dim; j += kLanes) pool_columns<1>(bag, j, divisor, out);
  return true;
}
#else
EMB_FN bool pool_block(const PoolRows&, uint32_t, float*) { return false; }
#endif

EMB_FN void pool(const PoolRows& bag, const RowFormat& f, float* scratch, float* out) {
  const uint32_t dim = f.dim;
  if (bag.n == 0) {
    for (uint32_t j = 0; j < dim; ++j) out[j] = 0.0f;
    return;
  }
  const bool is_copied = f.dtype != Dtype::kF32 || EMB_TSAN;
  if (!is_copied && pool_block(bag, dim, out)) return;
  float* const weighted = scratch + uint64_t{kReduceLevels} * dim;
  float* const wide = weighted + dim;
  BlockSum sum = {scratch, dim, 0};
  for (uint64_t i = 0; i < bag.n; ++i) {
    if (i + kPrefetchRows < bag.n_ahead) prefetch_row(bag.rows[i + kPrefetchRows], value_bytes(f));
    const float* row = static_cast<const float*>(bag.rows[i]);
    if (is_copied) {
      widen_row(bag.rows[i], f, wide);
      row = wide;
    }
    if (bag.weights != nullptr) {
      for (uint32_t j = 0; j < dim; ++j) weighted[j] = row[j] * bag.weights[i];
      row = weighted;
    }
    block_sum_add(sum, row);
  }
  const float* total = block_sum_finish(sum);
  const float divisor = pool_divisor(bag.mode, bag.n);
  for (uint32_t j = 0; j < dim; ++j) out[j] = bag.mode == PoolMode::kSum ? total[j] : total[j] / divisor;
}

EMB_FN Kernels make_kernels(const char* name) {
  Kernels k = {};
  k.name = name;
  k.find_rows = embstore::cpu::find_rows;
  k.find_rows_versioned = embstore::cpu::find_rows_versioned;
  k.dedup = embstore::cpu::dedup;
  k.split_keys = embstore::cpu::split_keys;
  k.find_cells = embstore::cpu::find_cells;
  k.touch_rows = embstore::cpu::touch_rows;
  k.copy_rows = embstore::cpu::copy_rows;
  k.sum_gradients = embstore::cpu::sum_gradients;
  k.all_finite = embstore::cpu::all_finite;
  k.all_rows_finite = embstore::cpu::all_rows_finite;
  k.update_rows = embstore::cpu::update_rows;
  k.assign_rows = embstore::cpu::assign_rows;
  k.birth_rows = embstore::cpu::birth_rows;
  k.initial_values = embstore::cpu::initial_values;
  k.pool = embstore::cpu::pool;
  k.select_rows = embstore::cpu::select_rows;
  k.select_by_norm = embstore::cpu::select_by_norm;
  return k;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_KERNELS_H_
