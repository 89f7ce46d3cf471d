// What is due at a step.
#include "embstore/cuda/upkeep.h"

using namespace embstore;
using namespace embstore::cuda;

struct ExpireArgs {
  const TableView* table;  // candidate_epoch is the last one
  int64_t now;             // the present epoch
  int64_t ttl;
};

EMB_KERNEL(expire_all_candidates, ExpireArgs) { expire_candidates(*a.table, a.now, a.ttl); }

struct HalveFrequenciesArgs {
  const TableView* table;
  uint64_t n_ids;
};

EMB_KERNEL(halve_all_frequencies, HalveFrequenciesArgs) { halve_frequencies(*a.table, a.n_ids); }

struct AdvanceBaseArgs {
  const TableView* table;
  uint64_t by;
  uint64_t n_ids;
};

EMB_KERNEL(advance_base_of_steps, AdvanceBaseArgs) { advance_base(*a.table, a.by, a.n_ids); }

struct HalveBloomArgs {
  const TableView* table;
  uint64_t n_words;  // of 8 bytes
};

EMB_KERNEL(halve_bloom_filter, HalveBloomArgs) {
  const TableView& t = *a.table;
  halve_bloom(reinterpret_cast<uint64_t*>(t.bloom), a.n_words, static_cast<uint32_t>(t.bloom_cell_bits), t.counters);
}

struct CountBloomArgs {
  const TableView* table;
  uint64_t n_words;  // of 8 bytes
  uint64_t* n_used;  // added to
};

EMB_KERNEL(count_bloom_cells_used, CountBloomArgs) {
  const TableView& t = *a.table;
  count_bloom_cells(reinterpret_cast<const uint64_t*>(t.bloom), a.n_words, static_cast<uint32_t>(t.bloom_cell_bits),
                    a.n_used);
}
