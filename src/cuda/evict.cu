// Eviction and erasure.
#include "embstore/cuda/evict.h"

using namespace embstore;
using namespace embstore::cuda;

struct SelectRowsArgs {
  const TableView* table;
  const Predicate* program;
  uint64_t n_predicates;
  int64_t step;
  uint64_t first_row;  // a multiple of 32
  uint64_t end_row;
  uint32_t* selected;
  SelectionCounts* counts;  // added to
};

EMB_KERNEL(select_rows_by_records, SelectRowsArgs) {
  const TableView& t = *a.table;
  const Program program = {a.program, static_cast<uint32_t>(a.n_predicates), a.step};
  const auto is_selected = [&](uint32_t row, bool is_live) { return is_selected_by_record(t, program, row, is_live); };
  select_rows(t.live, RowRange{a.first_row, a.end_row}, is_selected, a.selected, a.counts);
}

EMB_KERNEL(select_rows_by_norms, SelectRowsArgs) {
  const TableView& t = *a.table;
  const Program program = {a.program, static_cast<uint32_t>(a.n_predicates), a.step};
  const auto is_selected = [&](uint32_t row, bool is_live) { return is_selected_by_norm(t, program, row, is_live); };
  select_rows(t.live, RowRange{a.first_row, a.end_row}, is_selected, a.selected, a.counts);
}

struct SelectSetArgs {
  const uint32_t* set;
  const uint32_t* other;  // or null
  uint64_t end_row;
  uint32_t* selected;
  SelectionCounts* counts;  // added to
};

// All rows of a set, or those that another set holds too.
EMB_KERNEL(select_rows_of_set, SelectSetArgs) {
  const auto is_selected = [&](uint32_t row, bool is_in) {
    return is_in && (a.other == nullptr || has_bit(a.other[row / kWordRows], row % kWordRows));
  };
  select_rows(a.set, RowRange{0, a.end_row}, is_selected, a.selected, a.counts);
}

struct SpareKeysArgs {
  const TableView* table;
  const int64_t* keys;
  uint64_t n;
  uint64_t first_row;
  uint64_t end_row;
  uint32_t* selected;
  SelectionCounts* counts;  // less those that were in
};

EMB_KERNEL(spare_selected_keys, SpareKeysArgs) {
  spare_keys(*a.table, a.keys, a.n, RowRange{a.first_row, a.end_row}, a.selected, a.counts);
}

struct SpareRowsArgs {
  const uint32_t* rows;  // kNoRow is passed over
  uint64_t n;
  const uint64_t* n_at;  // or null
  uint32_t* selected;
  SelectionCounts* counts;  // less those that were in
};

EMB_KERNEL(spare_selected_rows, SpareRowsArgs) { spare_rows(a.rows, count_of(a.n, a.n_at), a.selected, a.counts); }

struct CountRanksArgs {
  const TableView* table;
  const uint32_t* selected;
  uint64_t first_row;
  uint64_t end_row;
  uint64_t by;       // RankBy
  uint64_t score;    // its first bytes are known,
  uint64_t key;      // then those of the key, its sign turned over
  uint64_t n_known;  // bytes of both
  uint64_t* counts;  // (256,) added to
};

EMB_KERNEL(count_selected_ranks, CountRanksArgs) {
  EMB_SHARED(uint32_t, bins, kDigits);
  clear_bins(bins);
  count_ranks(*a.table, a.selected, RowRange{a.first_row, a.end_row}, static_cast<RankBy>(a.by), Rank{a.score, a.key},
              static_cast<uint32_t>(a.n_known), bins);
  add_bins(bins, a.counts);
}

struct KeepFirstArgs {
  const TableView* table;
  uint64_t first_row;
  uint64_t end_row;
  uint64_t by;     // RankBy
  uint64_t score;  // of the last row that is kept
  uint64_t key;    // its sign turned over
  uint32_t* selected;
};

EMB_KERNEL(keep_first_selected, KeepFirstArgs) {
  keep_first(*a.table, RowRange{a.first_row, a.end_row}, static_cast<RankBy>(a.by), Rank{a.score, a.key}, a.selected);
}

struct FindRowCellsArgs {
  const TableView* table;
  const uint32_t* rows;
  uint64_t n;
  uint64_t* cells;  // (n,)
};

EMB_KERNEL(find_cells_of_rows, FindRowCellsArgs) { find_row_cells(*a.table, a.rows, a.n, a.cells); }

struct RemoveRowsArgs {
  const TableView* table;
  const uint32_t* rows;   // distinct
  const uint64_t* cells;  // of their keys
  uint64_t n;
};

EMB_KERNEL(remove_listed_rows, RemoveRowsArgs) { remove_rows(*a.table, a.rows, a.cells, a.n); }

struct SettleRemovalArgs {
  const TableView* table;
  uint64_t n;
  uint64_t is_erasure;
};

EMB_KERNEL(settle_removal_of_rows, SettleRemovalArgs) {
  if (grid_thread() == 0) settle_removal(*a.table, a.n, a.is_erasure != 0);
}

struct MarkErasedArgs {
  const TableView* table;
  const int64_t* keys;
  uint64_t n;
  uint32_t* rows;   // a set: added to
  uint64_t* cells;  // (n,) of candidates, or kNoCell
};

EMB_KERNEL(mark_erased_keys, MarkErasedArgs) { mark_erased(*a.table, a.keys, a.n, a.rows, a.cells); }

struct DropCandidatesArgs {
  const TableView* table;
  const uint64_t* cells;
  uint64_t n;
};

EMB_KERNEL(drop_candidate_cells, DropCandidatesArgs) { drop_candidates(*a.table, a.cells, a.n); }
