// Reading rows: by key (find), or by the positions of a batch whose keys are known.
#include "embstore/cuda/gather.h"

using namespace embstore;
using namespace embstore::cuda;

struct FindRowsArgs {
  const TableView* table;
  const uint64_t* keys;  // (n,)
  uint64_t n;
  void* out;  // (n, dim) or null
  uint64_t out_dtype;
  uint64_t missing;
  uint8_t* found;           // (n,) or null
  uint32_t* freq;           // (n,) or null
  int64_t* step;            // (n,) or null
  uint32_t* rows;           // (n,) or null: row ids
  uint64_t* first_missing;  // or null: the least position without a row, if less than what it holds
};

EMB_KERNEL(find_rows, FindRowsArgs) {
  const IndexTile tile = IndexTile::here();
  const TableView& t = *a.table;
  const Dtype dtype = static_cast<Dtype>(a.out_dtype);
  for (uint64_t i = tile.number(); i < a.n; i += IndexTile::count()) {
    const uint64_t key = a.keys[i];
    const uint32_t row = row_of_key(tile, t, key);
    if (a.out != nullptr)
      write_row(tile, t, row, key, static_cast<Missing>(a.missing), dtype, out_row(a.out, dtype, i, t.dim));
    if (tile.lane() != 0) continue;
    const bool is_found = row != kNoRow;
    if (a.found != nullptr) a.found[i] = is_found;
    if (a.rows != nullptr) a.rows[i] = row;
    if (a.freq != nullptr) a.freq[i] = is_found ? meta_of(t, row)->freq : 0;
    if (a.step != nullptr) a.step[i] = is_found ? t.step_base + meta_of(t, row)->step : -1;
    if (a.first_missing != nullptr && !is_found) fetch_min(a.first_missing, i);
  }
}

struct FindPlainRowsArgs {
  const TableView* table;  // of float32 rows, whose dim is a multiple of 4
  const uint64_t* keys;    // (n,)
  uint64_t n;
  float* out;  // (n, dim), at a multiple of 16 bytes
};

// The commonest find: rows or the default row, and nothing else. As many keys as can be wait for memory at once.
EMB_KERNEL_RESIDENT(find_plain_rows, FindPlainRowsArgs, 5) {
  const IndexTile tile = IndexTile::here();
  const TableView& t = *a.table;
  for (uint64_t i = tile.number(); i < a.n; i += IndexTile::count()) {
    const uint32_t row = row_of_key(tile, t, a.keys[i]);
    copy_plain(tile, row != kNoRow ? reinterpret_cast<const float*>(values_of(t, row)) : t.default_row,
               a.out + i * t.dim, static_cast<uint32_t>(t.dim));
  }
}

struct GatherBatchArgs {
  const TableView* table;
  const uint32_t* inverse;  // (n,)
  uint64_t n;
  const uint32_t* rows;  // by the numbers of distinct keys
  void* out;             // (n, dim)
  uint64_t out_dtype;
};

EMB_KERNEL(gather_batch, GatherBatchArgs) {
  const IndexTile tile = IndexTile::here();
  const Dtype dtype = static_cast<Dtype>(a.out_dtype);
  for (uint64_t i = tile.number(); i < a.n; i += IndexTile::count())
    write_row(tile, *a.table, a.rows[a.inverse[i]], 0, Missing::kDefault, dtype,
              out_row(a.out, dtype, i, a.table->dim));
}
