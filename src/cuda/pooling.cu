// Bags of rows reduced to one.
#include "embstore/cuda/pooling.h"

using namespace embstore;
using namespace embstore::cuda;

struct PoolBagsArgs {
  const TableView* table;
  const uint32_t* rows;
  const uint32_t* inverse;  // (n,), or null: rows are those of the positions
  const float* weights;     // (n,) or null
  const int64_t* offsets;   // (n_bags + 1,)
  uint64_t n_bags;
  uint64_t pool_mode;
  float* out;  // (n_bags, dim)
  uint64_t lanes_shift;
};

EMB_KERNEL(pool_bags, PoolBagsArgs) {
  const TableView& t = *a.table;
  const PooledRows rows = {a.rows, a.inverse, a.weights};
  const QuadWalk walk = quad_walk(a.lanes_shift);
  for (uint64_t bag = walk.first; bag < a.n_bags; bag += walk.stride) {
    const uint64_t first = static_cast<uint64_t>(a.offsets[bag]);
    const uint64_t size = static_cast<uint64_t>(a.offsets[bag + 1]) - first;
    for (uint64_t at = walk.column; at < t.dim; at += walk.columns) {
      const uint32_t column = static_cast<uint32_t>(at);
      const Quad pooled = pool_quad(t, rows, first, size, static_cast<PoolMode>(a.pool_mode), column);
      store_floats(a.out + bag * t.dim + column, pooled, columns_at(t.dim, column));
    }
  }
}
