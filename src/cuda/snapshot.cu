// Saves beside writers.
#include "embstore/cuda/snapshot.h"

using namespace embstore;
using namespace embstore::cuda;

struct ProtectRowsArgs {
  const TableView* table;
  CutView* cut;
  const uint32_t* rows;  // distinct; kNoRow is passed over
  uint64_t n;
  const uint64_t* n_at;  // or null
};

EMB_KERNEL(protect_rows_of_cut, ProtectRowsArgs) {
  protect_rows(*a.table, a.cut, a.rows, count_of(a.n, a.n_at));
}

struct FreezeMetasArgs {
  const TableView* table;
  const CutView* cut;
  char* out;  // (n_ids,) Meta
};

EMB_KERNEL(freeze_metas_of_cut, FreezeMetasArgs) {
  freeze_metas(*a.table, *a.cut, reinterpret_cast<Meta*>(a.out));
}

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
