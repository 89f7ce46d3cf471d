// Export, import, candidates and the change log.
#include "embstore/cuda/transfer.h"

using namespace embstore;
using namespace embstore::cuda;

struct GatherRowsArgs {
  const TableView* table;
  const uint32_t* rows;
  uint64_t n;
  int64_t* keys;   // (n,)
  char* values;    // (n, dim) as stored
  float* slots;    // (n, n_slots)
  uint32_t* freq;  // (n,)
  int64_t* step;   // (n,)
};

EMB_KERNEL(gather_complete_rows, GatherRowsArgs) {
  gather_rows(*a.table, a.rows, a.n, RowArrays{a.keys, a.values, a.slots, a.freq, a.step});
}

struct ImportRowsArgs {
  const TableView* table;
  const uint32_t* rows;  // distinct
  uint64_t n;
  char* values;    // (n, dim) as stored
  float* slots;    // (n, n_slots), or null: as at birth
  uint32_t* freq;  // (n,), or null: 0
  int64_t* step;   // (n,), or null: step_of_all
  int64_t step_of_all;
};

EMB_KERNEL(import_complete_rows, ImportRowsArgs) {
  import_rows(*a.table, a.rows, a.n, RowArrays{nullptr, a.values, a.slots, a.freq, a.step}, a.step_of_all);
}

struct ReadRowKeysArgs {
  const TableView* table;
  const uint32_t* rows;
  uint64_t n;
  uint64_t* keys;  // (n,)
};

EMB_KERNEL(read_keys_of_rows, ReadRowKeysArgs) { read_row_keys(*a.table, a.rows, a.n, a.keys); }

struct CountPartitionsArgs {
  const uint64_t* keys;
  uint64_t n;
  uint64_t* counts;  // (256,) added to
};

EMB_KERNEL(count_keys_of_partitions, CountPartitionsArgs) {
  EMB_SHARED(uint32_t, bins, kDigits);
  clear_bins(bins);
  count_partitions(a.keys, a.n, bins);
  add_bins(bins, a.counts);
}

struct PutRowsInOrderArgs {
  const uint32_t* from;
  const uint32_t* order;
  uint64_t n;
  uint32_t* out;  // (n,)
};

EMB_KERNEL(put_rows_in_order, PutRowsInOrderArgs) { put_in_order(a.from, a.order, a.n, a.out); }

struct PutKeysInOrderArgs {
  const uint64_t* from;
  const uint32_t* order;
  uint64_t n;
  uint64_t* out;  // (n,)
};

EMB_KERNEL(put_keys_in_order, PutKeysInOrderArgs) { put_in_order(a.from, a.order, a.n, a.out); }

struct CountCandidatesArgs {
  const TableView* table;
  uint32_t* counts;  // (n_lines,)
};

EMB_KERNEL(count_candidates_of_lines, CountCandidatesArgs) { count_candidates(*a.table, a.counts); }

struct ListCandidatesArgs {
  const TableView* table;
  const uint32_t* places;  // (n_lines,) prefix sums of the counts
  uint64_t* cells;
  uint64_t* keys;
};

EMB_KERNEL(list_candidates_of_lines, ListCandidatesArgs) { list_candidates(*a.table, a.places, a.cells, a.keys); }

struct ReadCandidatesArgs {
  const TableView* table;
  const uint64_t* cells;
  uint64_t n;
  int64_t* keys;
  uint32_t* counts;
  int64_t* epochs;
};

EMB_KERNEL(read_candidate_cells, ReadCandidatesArgs) {
  read_candidates(*a.table, a.cells, a.n, CandidateArrays{a.keys, a.counts, a.epochs});
}

struct InsertCandidatesArgs {
  const TableView* table;
  int64_t* keys;  // distinct and absent
  uint32_t* counts;
  int64_t* epochs;
  uint64_t n;
};

EMB_KERNEL(insert_candidate_cells, InsertCandidatesArgs) {
  insert_candidates(*a.table, CandidateArrays{a.keys, a.counts, a.epochs}, a.n);
}

struct MarkGoneArgs {
  const TableView* table;
  const int64_t* keys;  // by (partition, key)
  uint64_t n;
  uint32_t* is_gone;  // (n,)
};

EMB_KERNEL(mark_gone_keys, MarkGoneArgs) { mark_gone(*a.table, a.keys, a.n, a.is_gone); }

struct LogRemovedArgs {
  const TableView* table;
  const uint32_t* rows;
  uint64_t n;
};

EMB_KERNEL(log_removed_rows, LogRemovedArgs) { log_removed(*a.table, a.rows, a.n); }

struct SettleClearArgs {
  const TableView* table;
};

EMB_KERNEL(settle_clear_of_table, SettleClearArgs) {
  if (grid_thread() == 0) settle_clear(*a.table);
}
