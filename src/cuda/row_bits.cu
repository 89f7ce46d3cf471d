// From sets of rows to lists.
#include "embstore/cuda/row_bits.h"

using namespace embstore;
using namespace embstore::cuda;

struct CountWordsArgs {
  const uint32_t* set;
  uint64_t first_row;
  uint64_t end_row;
  uint32_t* counts;  // (words of the range,)
};

EMB_KERNEL(count_words_of_rows, CountWordsArgs) { count_words(a.set, RowRange{a.first_row, a.end_row}, a.counts); }

struct ListRowsArgs {
  const uint32_t* set;
  uint64_t first_row;
  uint64_t end_row;
  const uint32_t* places;  // (words of the range,) prefix sums of the counts
  uint32_t* rows;
};

EMB_KERNEL(list_rows_of_words, ListRowsArgs) { list_rows(a.set, RowRange{a.first_row, a.end_row}, a.places, a.rows); }

struct JoinSetsArgs {
  const uint32_t* other;
  uint64_t n;  // words
  uint32_t* set;
};

// Adds the rows of another set.
EMB_KERNEL(join_sets, JoinSetsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.set[i] |= a.other[i];
}
