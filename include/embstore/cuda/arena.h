// Where rows lie: in chunks of a power of two, whose addresses never change once they are full.
//
// A chunk is in the device's memory or in pinned memory of the host; kernels do not know which.
#ifndef EMBSTORE_CUDA_ARENA_H_
#define EMBSTORE_CUDA_ARENA_H_

#include "table.h"

namespace embstore::cuda {

EMB_DEVICE char* values_of(const TableView& t, uint32_t row) {
  const uint64_t in_chunk = row & ((uint64_t{1} << t.chunk_shift) - 1);
  return t.row_chunks[row >> t.chunk_shift] + in_chunk * t.row_bytes;
}

EMB_DEVICE float* slots_of(const TableView& t, uint32_t row) {
  return reinterpret_cast<float*>(values_of(t, row) + t.slots_at);
}

EMB_DEVICE Meta* meta_of(const TableView& t, uint32_t row) {
  return t.meta_chunks[row >> t.chunk_shift] + (row & ((uint64_t{1} << t.chunk_shift) - 1));
}

EMB_DEVICE bool is_live(const TableView& t, uint32_t row) { return (t.live[row / 32] >> (row % 32) & 1u) != 0; }
EMB_DEVICE void set_live(const TableView& t, uint32_t row) { fetch_or(&t.live[row / 32], 1u << (row % 32)); }
EMB_DEVICE void set_dead(const TableView& t, uint32_t row) { fetch_and(&t.live[row / 32], ~(1u << (row % 32))); }

// In the change log.
EMB_DEVICE void note_written(const TableView& t, uint32_t row) {
  if (t.dirty != nullptr) fetch_or(&t.dirty[row / 32], 1u << (row % 32));
}
EMB_DEVICE void note_gone(const TableView& t, uint32_t row) {
  if (t.dirty != nullptr) fetch_and(&t.dirty[row / 32], ~(1u << (row % 32)));
}

// Four columns of a row, from a multiple of four on: what one lane takes, and one block of random words covers.
struct Quad {
  float x[4];
};

EMB_DEVICE uint32_t columns_at(uint64_t dim, uint32_t column) {
  return dim - column < 4 ? static_cast<uint32_t>(dim - column) : 4;
}

EMB_DEVICE Quad load_floats(const float* at, uint32_t n) {
  Quad q = {{0.0f, 0.0f, 0.0f, 0.0f}};
  if (n == 4 && reinterpret_cast<uint64_t>(at) % 16 == 0) {
    const Pair p = load16(at);
    q.x[0] = float_of(static_cast<uint32_t>(p.x));
    q.x[1] = float_of(static_cast<uint32_t>(p.x >> 32));
    q.x[2] = float_of(static_cast<uint32_t>(p.y));
    q.x[3] = float_of(static_cast<uint32_t>(p.y >> 32));
    return q;
  }
  for (uint32_t i = 0; i < 4; ++i)
    if (i < n) q.x[i] = at[i];
  return q;
}

EMB_DEVICE uint64_t two_floats(float low, float high) {
  return bits_of(low) | static_cast<uint64_t>(bits_of(high)) << 32;
}

EMB_DEVICE void store_floats(float* at, const Quad& q, uint32_t n) {
  if (n == 4 && reinterpret_cast<uint64_t>(at) % 16 == 0)
    return store16(at, Pair{two_floats(q.x[0], q.x[1]), two_floats(q.x[2], q.x[3])});
  for (uint32_t i = 0; i < 4; ++i)
    if (i < n) at[i] = q.x[i];
}

// Four columns as 16-bit rows hold them.
struct Halves {
  uint16_t x[4];
};

EMB_DEVICE Halves load_halves(const uint16_t* at, uint32_t n) {
  Halves h = {{0, 0, 0, 0}};
  if (n == 4 && reinterpret_cast<uint64_t>(at) % 8 == 0) {
    const uint64_t word = *reinterpret_cast<const uint64_t*>(at);
    for (uint32_t i = 0; i < 4; ++i) h.x[i] = static_cast<uint16_t>(word >> (16 * i));
    return h;
  }
  for (uint32_t i = 0; i < 4; ++i)
    if (i < n) h.x[i] = at[i];
  return h;
}

EMB_DEVICE void store_halves(uint16_t* at, const Halves& h, uint32_t n) {
  if (n == 4 && reinterpret_cast<uint64_t>(at) % 8 == 0) {
    const uint64_t low = h.x[0] | static_cast<uint64_t>(h.x[1]) << 16;
    const uint64_t high = h.x[2] | static_cast<uint64_t>(h.x[3]) << 16;
    *reinterpret_cast<uint64_t*>(at) = low | high << 32;
    return;
  }
  for (uint32_t i = 0; i < 4; ++i)
    if (i < n) at[i] = h.x[i];
}

// Columns [column, column + n) of values stored as `dtype`, widened.
EMB_DEVICE Quad load_values(Dtype dtype, const char* values, uint32_t column, uint32_t n) {
  if (dtype == Dtype::kF32) return load_floats(reinterpret_cast<const float*>(values) + column, n);
  const Halves halves = load_halves(reinterpret_cast<const uint16_t*>(values) + column, n);
  Quad q;
  for (uint32_t i = 0; i < 4; ++i) q.x[i] = widen(dtype, halves.x[i]);
  return q;
}

// To nearest.
EMB_DEVICE void store_values(Dtype dtype, char* values, uint32_t column, const Quad& q, uint32_t n) {
  if (dtype == Dtype::kF32) return store_floats(reinterpret_cast<float*>(values) + column, q, n);
  Halves halves;
  for (uint32_t i = 0; i < 4; ++i) halves.x[i] = narrow(dtype, q.x[i]);
  store_halves(reinterpret_cast<uint16_t*>(values) + column, halves, n);
}

// Values as they would be read if a row held them.
EMB_DEVICE Quad rounded_quad(Dtype dtype, Quad q) {
  if (dtype == Dtype::kF32) return q;
  for (uint32_t i = 0; i < 4; ++i) q.x[i] = widen(dtype, narrow(dtype, q.x[i]));
  return q;
}

// Columns of the row that keys without one read.
EMB_DEVICE Quad default_quad(const TableView& t, uint32_t column, uint32_t n) {
  return rounded_quad(dtype_of(t), load_floats(t.default_row + column, n));
}

// Threads that take rows together and never meet: 2^shift neighbours share a row, and take its quads in turn.
struct QuadWalk {
  uint64_t first;    // row of the work
  uint64_t stride;   // to the next
  uint32_t column;   // of the first quad
  uint32_t columns;  // to the next
};

EMB_DEVICE QuadWalk quad_walk(uint64_t shift) {
  const uint32_t lane = block_thread() & ((1u << shift) - 1u);
  return QuadWalk{grid_thread() >> shift, grid_threads() >> shift, 4 * lane, 4u << shift};
}

EMB_DEVICE void add_quad(Quad* sum, const Quad& x) {
  for (uint32_t i = 0; i < 4; ++i) sum->x[i] = sum->x[i] + x.x[i];
}

EMB_DEVICE Quad scaled_quad(const Quad& x, float by) {
  return Quad{{x.x[0] * by, x.x[1] * by, x.x[2] * by, x.x[3] * by}};
}

EMB_DEVICE Quad divided_quad(const Quad& x, float by) {
  return Quad{{x.x[0] / by, x.x[1] / by, x.x[2] / by, x.x[3] / by}};
}

EMB_DEVICE bool is_finite_quad(const Quad& q) {
  return is_finite(q.x[0]) && is_finite(q.x[1]) && is_finite(q.x[2]) && is_finite(q.x[3]);
}

// The initial values of four columns.
EMB_DEVICE Quad initial_quad(const TableView& t, uint64_t key, uint32_t column) {
  Quad q;
  initial_block(initializer_of(t), key, column / 4, q.x);
  return q;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_ARENA_H_
