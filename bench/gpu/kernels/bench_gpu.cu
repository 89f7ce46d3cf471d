// Kernels of the GPU benchmark: what a card's memory gives at best, and keys, row ids and numbers made on the card.
//
// 1. Random numbers are drawn by counter: a number is a function of a seed and of its place, and nothing is read for
// it.
// 2. The lines of a ceiling are zero, but the compiler does not know: so a row's position depends on what its line
//    holds, as in a table, where the row id lies in the line.
// 3. Eight lanes work on one read, 16 bytes each at a time, as the engine's do.
// One unit without a header of its own: what names a kept cubin (engines/kernels.py) hashes the library's headers
// alone.
#include "embstore/cuda/simt.h"

#if defined(EMB_EMULATED)
#include <math.h>
#endif

using namespace embstore;
using namespace embstore::cuda;

EMB_CONST uint64_t kGolden = 0x9E3779B97F4A7C15ull;

// The finalizer of splitmix64, as bench/keys.py has it.
EMB_DEVICE uint64_t finalized(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

EMB_DEVICE uint64_t mixed(uint64_t x) { return finalized(x * kGolden + kGolden); }

// 64 random bits as a number below n, by their upper half for small n, exactly enough for a benchmark.
EMB_DEVICE uint64_t scaled(uint64_t bits, uint64_t n) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * n) >> 64);
}

// In [0, 1).
EMB_DEVICE double unit_of(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

// ---- ceilings

using ReadTile = Tile<8>;

struct CopyArgs {
  const uint64_t* from;
  uint64_t* to;
  uint64_t n_bytes;  // a multiple of 16
};

EMB_KERNEL(ceiling_copy, CopyArgs) {
  for (uint64_t i = grid_thread(); i < a.n_bytes / 16; i += grid_threads())
    store16(a.to + 2 * i, load16(a.from + 2 * i));
}

struct RandomLinesArgs {
  const uint64_t* lines;  // (n_lines, 16): zeros
  uint64_t n_lines;
  uint64_t n;
  uint64_t seed;
  uint64_t never;  // what no sum is: keeps the compiler from dropping the reads
  uint64_t* out;
};

EMB_KERNEL(ceiling_lines, RandomLinesArgs) {
  const ReadTile tile = ReadTile::here();
  uint64_t sum = 0;
  for (uint64_t i = tile.number(); i < a.n; i += ReadTile::count()) {
    const uint64_t line = scaled(mixed(a.seed + i), a.n_lines);
    const Pair x = load16(a.lines + 16 * line + 2 * tile.lane());
    sum += x.x + x.y;
  }
  if (sum == a.never) a.out[0] = sum;
}

struct LinesAndRowsArgs {
  const uint64_t* lines;  // (n_lines, 16): zeros
  uint64_t n_lines;
  const uint64_t* rows;  // (n_rows, row_bytes)
  uint64_t n_rows;
  uint64_t row_bytes;  // a multiple of 16
  uint64_t n;
  uint64_t seed;
  uint64_t never;
  uint64_t* out;  // of one word
  uint64_t* to;   // (n, row_bytes), or null: rows are only read
};

EMB_KERNEL(ceiling_lines_and_rows, LinesAndRowsArgs) {
  const ReadTile tile = ReadTile::here();
  const uint64_t row_words = a.row_bytes / 8;
  uint64_t sum = 0;
  for (uint64_t i = tile.number(); i < a.n; i += ReadTile::count()) {
    const uint64_t drawn = mixed(a.seed + i);
    const Pair x = load16(a.lines + 16 * scaled(drawn, a.n_lines) + 2 * tile.lane());
    const uint64_t row = scaled(mixed(drawn ^ tile.shfl(x.y, 5)), a.n_rows);
#if defined(__CUDACC__)
#pragma unroll 1  // fewer registers, more reads under way
#endif
    for (uint64_t at = 2 * tile.lane(); at < row_words; at += 16) {
      const Pair values = load16(a.rows + row * row_words + at);
      if (a.to != nullptr)
        store16(a.to + i * row_words + at, values);
      else
        sum += values.x + values.y;
    }
  }
  if (sum == a.never) a.out[0] = sum;
}

// ---- keys, row ids and numbers

struct KeysArgs {
  const uint64_t* ids;  // (n,), or null: first, first + 1, ...
  uint64_t first;
  uint64_t n;
  uint64_t salt;  // (2 * seed + 1) * golden: bench/keys.py
  int64_t* keys;
};

// The key of each row id, as keys.key_of gives it.
EMB_KERNEL(data_keys, KeysArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    const uint64_t id = a.ids == nullptr ? a.first + i : a.ids[i];
    a.keys[i] = static_cast<int64_t>(finalized(id + a.salt));
  }
}

struct UniformIdsArgs {
  uint64_t n;
  uint64_t n_rows;
  uint64_t seed;
  double fresh_share;    // of the ids: those are not below n_rows, but
  uint64_t first_fresh;  // this and the following ones, by place
  uint64_t* ids;
};

EMB_KERNEL(data_uniform_ids, UniformIdsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    const uint64_t drawn = mixed(a.seed + i);
    const bool is_fresh = unit_of(mixed(drawn)) < a.fresh_share;
    a.ids[i] = is_fresh ? a.first_fresh + i : scaled(drawn, a.n_rows);
  }
}

struct ZipfIdsArgs {
  uint64_t n;
  uint64_t n_rows;
  uint64_t seed;
  double exponent;   // not 1
  uint64_t scatter;  // a prime that does not divide n_rows
  uint64_t* ids;
};

// Ranks by rejection-inversion, as keys.Zipf does (Hörmann and Derflinger 1996), and then scattered over the rows.
struct Zipf {
  double exponent;

  EMB_METHOD double density(double x) const { return exp(-exponent * log(x)); }
  EMB_METHOD double integral(double x) const {
    const double t = (1.0 - exponent) * log(x);
    return expm1(t) / (1.0 - exponent);
  }
  EMB_METHOD double inverse(double area) const {
    const double t = area * (1.0 - exponent);
    return exp(log1p(t < -1.0 + 1e-15 ? -1.0 + 1e-15 : t) / (1.0 - exponent));
  }
};

EMB_KERNEL(data_zipf_ids, ZipfIdsArgs) {
  const Zipf zipf = {a.exponent};
  const double first = zipf.integral(1.5) - 1.0;
  const double last = zipf.integral(static_cast<double>(a.n_rows) + 0.5);
  const double shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) {
    uint64_t bits = mixed(a.seed + i), rank = 1;
    for (uint32_t tries = 0; tries < 64; ++tries, bits = mixed(bits)) {
      const double u = last + unit_of(bits) * (first - last);
      const double x = zipf.inverse(u);
      const double k = floor(x + 0.5);
      rank = k < 1.0 ? 1 : static_cast<uint64_t>(k);
      if (rank > a.n_rows) rank = a.n_rows;
      const double taken = static_cast<double>(rank);
      if (taken - x <= shortcut || u >= zipf.integral(taken + 0.5) - zipf.density(taken)) break;
    }
    a.ids[i] = static_cast<uint64_t>(static_cast<unsigned __int128>(rank - 1) * a.scatter % a.n_rows);
  }
}

struct FloatsArgs {
  uint64_t n;
  uint64_t seed;
  double scale;
  float* out;
};

// Numbers in [-scale, scale).
EMB_KERNEL(data_floats, FloatsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads())
    a.out[i] = static_cast<float>((2.0 * unit_of(mixed(a.seed + i)) - 1.0) * a.scale);
}

struct StepsArgs {
  uint64_t n;
  int64_t step;
  int64_t* out;
};

// 0, step, 2 * step, ...
EMB_KERNEL(data_steps, StepsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.out[i] = static_cast<int64_t>(i) * a.step;
}
