// Rows by key or by position to where the caller wants them: eight lanes copy a row, 16 bytes each at a time.
#ifndef EMBSTORE_CUDA_GATHER_H_
#define EMBSTORE_CUDA_GATHER_H_

#include "arena.h"
#include "index.h"

namespace embstore::cuda {

enum class Missing : uint64_t { kDefault = 0, kInitial = 1, kRaise = 2 };

// Where row number i of `out` (n, dim) of a dtype begins.
EMB_DEVICE char* out_row(void* out, Dtype dtype, uint64_t i, uint64_t dim) {
  return static_cast<char*>(out) + i * dim * size_of(dtype);
}

EMB_DEVICE void store_out(Dtype dtype, char* to, uint32_t column, const Quad& q, uint32_t n) {
  store_values(dtype, to, column, q, n);
}

// 16-bit values keep their bits.
EMB_DEVICE void copy_halves(const IndexTile& tile, const char* from, char* to, uint32_t dim) {
  const uint16_t* const source = reinterpret_cast<const uint16_t*>(from);
  uint16_t* const target = reinterpret_cast<uint16_t*>(to);
  if (dim % 8 == 0 && reinterpret_cast<uint64_t>(to) % 16 == 0) {
    for (uint32_t j = 8 * tile.lane(); j < dim; j += 64) store16(target + j, load16(source + j));
    return;
  }
  for (uint32_t j = tile.lane(); j < dim; j += 8) target[j] = source[j];
}

EMB_DEVICE void copy_out(const IndexTile& tile, const TableView& t, uint32_t row, Dtype out_dtype, char* to) {
  const char* const values = values_of(t, row);
  const uint32_t dim = static_cast<uint32_t>(t.dim);
  if (out_dtype != Dtype::kF32) return copy_halves(tile, values, to, dim);
  for (uint32_t j = 4 * tile.lane(); j < dim; j += 32) {
    const uint32_t n = columns_at(dim, j);
    store_floats(reinterpret_cast<float*>(to) + j, load_values(dtype_of(t), values, j, n), n);
  }
}

// What a key without a row reads; default rows and initial values are rounded to the table's dtype.
EMB_DEVICE void write_missing(const IndexTile& tile, const TableView& t, uint64_t key, Missing missing, Dtype out_dtype,
                              char* to) {
  const uint32_t dim = static_cast<uint32_t>(t.dim);
  for (uint32_t j = 4 * tile.lane(); j < dim; j += 32) {
    const uint32_t n = columns_at(dim, j);
    const Quad q = missing == Missing::kInitial ? initial_quad(t, key, j) : load_floats(t.default_row + j, n);
    store_out(out_dtype, to, j, out_dtype == Dtype::kF32 ? rounded_quad(dtype_of(t), q) : q, n);
  }
}

EMB_DEVICE void write_row(const IndexTile& tile, const TableView& t, uint32_t row, uint64_t key, Missing missing,
                          Dtype out_dtype, char* to) {
  if (row != kNoRow)
    copy_out(tile, t, row, out_dtype, to);
  else
    write_missing(tile, t, key, missing, out_dtype, to);
}

// dim floats, a multiple of 4, both sides at multiples of 16 bytes.
EMB_DEVICE void copy_plain(const IndexTile& tile, const float* from, float* to, uint32_t dim) {
  for (uint32_t j = 4 * tile.lane(); j < dim; j += 32) store16(to + j, load16(from + j));
}

EMB_DEVICE uint32_t row_of_key(const IndexTile& tile, const TableView& t, uint64_t key) {
  const uint32_t word = find_cell(tile, t, key).word;
  return is_row_word(word) ? row_of_word(word) : kNoRow;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_GATHER_H_
