// Saves beside writers.
#include "embstore/cuda/snapshot.h"

using namespace embstore;
using namespace embstore::cuda;

// Rows number `first` to `end` of a list of distinct ones, or to where the number at n_at says that it ends.
struct ProtectRowsArgs {
  const TableView* table;
  CutView* cut;          // null: that of the table, if it has one when this runs
  const uint32_t* rows;  // kNoRow is passed over
  uint64_t first;
  uint64_t end;
  const uint64_t* n_at;  // or null
};

EMB_KERNEL(protect_rows_of_cut, ProtectRowsArgs) {
  CutView* const cut = a.cut != nullptr ? a.cut : a.table->cut;
  if (cut != nullptr) protect_rows(*a.table, cut, a.rows, listed_range(a.first, a.end, a.n_at));
}

struct CountWaitingArgs {
  const TableView* table;
  CutView* cut;
  const uint32_t* rows;
  uint64_t first;
  uint64_t end;
  const uint64_t* n_at;
  uint64_t* count;  // added to
};

EMB_KERNEL(count_waiting_rows, CountWaitingArgs) {
  count_waiting(*a.cut, a.rows, listed_range(a.first, a.end, a.n_at), a.count);
}

struct FreezeMetasArgs {
  const TableView* table;
  const CutView* cut;
  char* out;  // (n_ids,) Meta
};

EMB_KERNEL(freeze_metas_of_cut, FreezeMetasArgs) { freeze_metas(*a.table, *a.cut, reinterpret_cast<Meta*>(a.out)); }

struct ReadCutArgs {
  const TableView* table;
  const CutView* cut;
  const uint32_t* rows;  // each of the cut, once
  uint64_t n;
  int64_t* keys;
  char* values;
  float* slots;
  uint32_t* freq;
  int64_t* step;
  uint64_t* elsewhere;  // (n,)
};

EMB_KERNEL(read_rows_of_cut, ReadCutArgs) {
  read_cut(*a.table, *a.cut, a.rows, a.n, RowArrays{a.keys, a.values, a.slots, a.freq, a.step}, a.elsewhere);
}
