// A table as kernels see it: one descriptor in the device's memory, and the counts that kernels keep.
//
// 1. The host owns all that is pointed to and writes the descriptor between calls; kernels borrow it by pointer, so
//    that a captured graph stays good when the table has grown.
// 2. Counters are written by the last kernel of a stage alone (settle_*), so that all others of it read what was
// before.
// 3. Every field has 8 bytes: the host fills them by name (engines/kernels.py reads this file).
#ifndef EMBSTORE_CUDA_TABLE_H_
#define EMBSTORE_CUDA_TABLE_H_

#include "../core/admission.h"
#include "../core/hash.h"
#include "../core/initializer.h"
#include "../core/optimizer.h"
#include "../core/rounding.h"
#include "../core/types.h"
#include "simt.h"

namespace embstore::cuda {

EMB_CONST uint32_t kCells = 10;

// A bucket of the index; a zeroed one is empty. Its lock is used by imports into caches alone: keys of a batch are
// distinct before they are inserted (docs/decisions/007).
struct alignas(128) Line {
  uint64_t key[kCells];
  uint32_t word[kCells];  // as core/types.h says
  uint32_t lock;
  uint32_t has_spilled;  // whether a key has ever gone on from here, so that a search must
};
static_assert(sizeof(Line) == 128, "a bucket is one cache line");

struct Counters {
  uint64_t n_live;        // rows
  uint64_t n_ids;         // row ids ever given out
  uint64_t n_free;        // of them, in free_rows
  uint64_t n_candidates;  // of CounterAdmission
  uint64_t n_removals;    // rows that ever left, so that tickets know whether their rows are good
  uint64_t n_log;         // keys in removed_keys
  uint64_t n_inserted;    // totals, as es_state has them
  uint64_t n_evicted;
  uint64_t n_erased;
  uint64_t n_refused;
  uint64_t n_candidates_expired;
  uint64_t n_grads_dropped;
  uint64_t n_grads_stale;
  uint64_t n_nonfinite;
  uint64_t n_steps_clamped;
  uint64_t n_bloom_added;
  uint64_t n_bad_calls;  // of apply_gradients, refused because a sum was not finite and nobody waited to hear it
  uint64_t bad_key;      // of the last of them
};

// What follows from a table's parameters by core's rules.
struct Derived {
  uint64_t stream;  // of initial values and stochastic rounding
  uint64_t hash_first;
  uint64_t hash_second;
  uint64_t hash_first_multiplier;
  uint64_t hash_second_multiplier;
  uint64_t n_slots;
  uint64_t n_accumulators;
  uint64_t has_moments;
};

// What changes from one replay of a captured graph to the next.
struct Now {
  uint64_t step;  // relative to step_base
  uint64_t t;     // training steps
  double lr;
  double beta1_power;
  double beta2_power;
};

struct CutView;  // snapshot.h

struct TableView {
  // What a row is: values, then slots, in row_bytes; rows lie in chunks of 2^chunk_shift (arena.h).
  uint64_t dim;
  uint64_t value_dtype;
  uint64_t is_stochastic;
  uint64_t n_slots;   // float32
  uint64_t slots_at;  // bytes from the row's first
  uint64_t row_bytes;
  uint64_t chunk_shift;
  char* const* row_chunks;
  Meta* const* meta_chunks;
  uint32_t* live;            // a bit for each row id
  uint32_t* dirty;           // a bit for each row id; null without a change log
  uint32_t* free_rows;       // ids to be given out again, the last first
  int64_t* removed_keys;     // of the change log; null without one
  const float* default_row;  // (dim,)
  // The index.
  Line* lines;
  uint64_t n_lines;
  uint64_t is_cache;  // whether keys lie in their first two buckets alone (cache.h)
  uint64_t hash_first;
  uint64_t hash_second;
  uint64_t hash_first_multiplier;
  uint64_t hash_second_multiplier;
  // Births.
  uint64_t init_kind;
  double init_a;
  double init_b;
  uint64_t stream;
  uint64_t n_accumulators;
  double initial_accumulator;
  // Admission.
  uint64_t admission_kind;
  uint64_t min_count;
  int64_t candidate_epoch;
  uint8_t* bloom;
  uint64_t bloom_cell_bits;
  uint64_t bloom_n_hashes;
  uint64_t bloom_blocks_per_partition;
  // Training.
  uint64_t optimizer_kind;
  double optimizer_p0;
  double optimizer_p1;
  double optimizer_p2;
  double optimizer_p3;
  double clip_norm;
  double clip_value;
  double weight_decay;
  int64_t step_base;
  Counters* counters;
  CutView* cut;  // of the snapshot that is being read, or null
};

EMB_DEVICE HashKeys hash_keys_of(const TableView& t) {
  return HashKeys{t.hash_first, t.hash_second, t.hash_first_multiplier, t.hash_second_multiplier};
}

EMB_DEVICE Dtype dtype_of(const TableView& t) { return static_cast<Dtype>(t.value_dtype); }

EMB_DEVICE Initializer initializer_of(const TableView& t) {
  return Initializer{static_cast<InitKind>(t.init_kind), static_cast<float>(t.init_a), static_cast<float>(t.init_b),
                     t.stream};
}

EMB_DEVICE BloomShape bloom_shape_of(const TableView& t) {
  return BloomShape{static_cast<uint32_t>(t.bloom_cell_bits), static_cast<uint32_t>(t.bloom_n_hashes),
                    t.bloom_blocks_per_partition};
}

EMB_DEVICE Optimizer optimizer_of(const TableView& t) {
  return Optimizer{static_cast<OptimizerKind>(t.optimizer_kind),
                   {t.optimizer_p0, t.optimizer_p1, t.optimizer_p2, t.optimizer_p3},
                   static_cast<float>(t.clip_norm),
                   static_cast<float>(t.clip_value),
                   t.weight_decay};
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_TABLE_H_
