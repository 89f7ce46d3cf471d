// What a table's descriptor holds that follows from its parameters by core's rules.
#include "embstore/cuda/table.h"

using namespace embstore;
using namespace embstore::cuda;

struct DeriveTableArgs {
  const char* name;  // utf-8
  uint64_t n_name_bytes;
  uint64_t seed;
  uint64_t hash_seed_low;
  uint64_t hash_seed_high;
  uint64_t optimizer_kind;
  double optimizer_p0;
  uint64_t dim;
  Derived* out;
};

EMB_KERNEL(derive_table, DeriveTableArgs) {
  if (grid_thread() != 0) return;
  const HashKeys keys = hash_keys(HashSeed{a.hash_seed_low, a.hash_seed_high});
  const Optimizer optimizer = {static_cast<OptimizerKind>(a.optimizer_kind), {a.optimizer_p0, 0, 0, 0}, 0, 0, 0};
  const uint32_t dim = static_cast<uint32_t>(a.dim);
  *a.out = Derived{stream_of(a.seed, name_hash(a.name, a.n_name_bytes)),
                   keys.first,
                   keys.second,
                   keys.first_multiplier,
                   keys.second_multiplier,
                   slot_floats(optimizer, dim),
                   n_accumulators(optimizer, dim),
                   has_moments(optimizer)};
}
