// A table's configuration, checked and in the types of core; and its clock and totals.
#ifndef EMBSTORE_CPU_CONFIG_H_
#define EMBSTORE_CPU_CONFIG_H_

#include <stdexcept>
#include <string>
#include <vector>

#include "../core/admission.h"
#include "../core/eviction.h"
#include "../core/initializer.h"
#include "../core/optimizer.h"
#include "../embstore.h"
#include "kernels.h"

namespace embstore::cpu {

constexpr uint32_t kMostDim = 4096;

// A failure with the status that the C ABI reports.
class Error : public std::runtime_error {
 public:
  Error(es_status status, const std::string& what) : std::runtime_error(what), status_(status) {}
  es_status status() const { return status_; }

 private:
  es_status status_;
};

inline void require(bool is_fine, const char* what) {
  if (!is_fine) throw Error(ES_INVALID, what);
}

inline std::vector<Predicate> predicates_of(const es_predicate* program, uint32_t n) {
  require(n <= ES_MAX_PREDICATES, "an eviction policy has at most 32 nodes");
  std::vector<Predicate> out;
  uint32_t depth = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const es_predicate& p = program[i];
    require(p.op >= ES_EVICT_STEP && p.op <= ES_EVICT_OR, "unknown eviction predicate");
    const bool is_joint = p.op == ES_EVICT_AND || p.op == ES_EVICT_OR;
    require(!is_joint || depth >= 2, "an eviction predicate joins two that are not there");
    depth = is_joint ? depth - 1 : depth + 1;
    out.push_back(Predicate{static_cast<PredicateOp>(p.op), p.threshold, p.min_freq, p.steps});
  }
  require(n == 0 || depth == 1, "an eviction program must leave one truth value");
  return out;
}

struct Config {
  es_config c;
  RowFormat format;
  Initializer init;
  Optimizer optimizer;
  BloomShape bloom;
  std::vector<Predicate> eviction;
  std::vector<float> default_row;  // (dim,)

  explicit Config(const es_config& config) : c(config) {
    require(c.struct_size == sizeof(es_config), "es_config is of another version");
    require(c.dim >= 1 && c.dim <= kMostDim, "dim must be 1..4096");
    require(c.value_dtype >= ES_F32 && c.value_dtype <= ES_BF16, "unknown value_dtype");
    require(c.init_kind >= 0 && c.init_kind <= ES_INIT_TRUNCATED_NORMAL, "unknown initializer");
    require(c.optimizer_kind >= 0 && c.optimizer_kind <= ES_OPT_FTRL, "unknown optimizer");
    require(c.admission_kind >= 0 && c.admission_kind <= ES_ADMIT_BLOOM, "unknown admission");
    require(c.on_full >= 0 && c.on_full <= ES_FULL_RAISE, "unknown on_full");
    require(c.on_nonfinite >= 0 && c.on_nonfinite <= ES_NONFINITE_ALLOW, "unknown on_nonfinite");
    require(c.admission_kind == ES_ADMIT_ALL || (c.min_count >= 1 && c.min_count <= kMaxMinCount),
            "min_count must be 1..4095");
    require(c.candidate_ttl >= 0 && c.bloom_halve_every >= 0 && c.evict_every >= 0 && c.freq_halve_every >= 0,
            "periods are not negative");
    optimizer = Optimizer{static_cast<OptimizerKind>(c.optimizer_kind),
                          {c.optimizer_p[0], c.optimizer_p[1], c.optimizer_p[2], c.optimizer_p[3]},
                          c.clip_norm,
                          c.clip_value,
                          c.weight_decay};
    format = RowFormat{c.dim, static_cast<Dtype>(c.value_dtype), c.rounding == ES_ROUND_STOCHASTIC,
                       slot_floats(optimizer, c.dim)};
    init = Initializer{static_cast<InitKind>(c.init_kind), c.init_a, c.init_b, stream_of(c.seed, c.name_hash)};
    set_bloom();
    eviction = predicates_of(c.predicates, c.n_predicates);
    default_row.assign(c.dim, 0.0f);
    if (c.default_row != nullptr) default_row.assign(c.default_row, c.default_row + c.dim);
    c.default_row = nullptr;
  }

  bool has_counter() const { return c.admission_kind == ES_ADMIT_COUNTER; }
  bool has_bloom() const { return c.admission_kind == ES_ADMIT_BLOOM; }
  float initial_accumulator() const { return static_cast<float>(optimizer.p[0]); }
  uint64_t bloom_bytes() const { return has_bloom() ? kPartitions * bloom.blocks_per_partition * kBloomBlockBytes : 0; }

 private:
  void set_bloom() {
    bloom = BloomShape{c.bloom_cell_bits, c.bloom_n_hashes, c.bloom_blocks_per_partition};
    if (!has_bloom()) return;
    require(c.bloom_cell_bits == 1 || c.bloom_cell_bits == 2 || c.bloom_cell_bits == 4,
            "bloom cells have 1, 2 or 4 bits");
    require(c.min_count <= 1u << c.bloom_cell_bits, "min_count needs wider bloom cells");
    require(c.bloom_n_hashes >= 1 && c.bloom_n_hashes <= kMaxBloomHashes, "a bloom filter has 1..16 hashes");
    require(c.bloom_blocks_per_partition >= 1 && c.bloom_blocks_per_partition < (uint64_t{1} << 40),
            "bloom_blocks_per_partition is out of range");
  }
};

inline int64_t next_multiple(int64_t step, int64_t period) {
  const int64_t periods = step / period + 1;
  return periods > INT64_MAX / period ? INT64_MAX : periods * period;
}

inline es_state initial_state(const es_config& c) {
  es_state s = {};
  s.struct_size = sizeof(es_state);
  s.last_train_step = -1;
  s.beta1_power = 1.0;
  s.beta2_power = 1.0;
  s.next_evict = c.evict_every;
  s.next_freq_halve = c.freq_halve_every;
  s.next_bloom_halve = c.bloom_halve_every;
  return s;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_CONFIG_H_
