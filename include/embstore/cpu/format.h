// What the bytes of a row are: its dtype, and its values as float32. Includes core alone, for the paths.
#ifndef EMBSTORE_CPU_FORMAT_H_
#define EMBSTORE_CPU_FORMAT_H_

#include "../core/rounding.h"
#include "../core/types.h"
#include "shared.h"

namespace embstore::cpu {

struct RowFormat {
  uint32_t dim;
  Dtype dtype;
  bool is_stochastic;
  uint32_t n_slots;  // float32 slots of a row
};

EMB_FN uint32_t value_bytes(const RowFormat& f) { return f.dim * size_of(f.dtype); }

EMB_FN void prefetch_row(const void* row, uint32_t n_bytes) {
  const char* line = static_cast<const char*>(row);
  const uint32_t most = n_bytes < 512 ? n_bytes : 512;
  for (uint32_t at = 0; at < most; at += 64) __builtin_prefetch(line + at);
}

EMB_FN void widen_row(const void* row, const RowFormat& f, float* out) {
  if (f.dtype == Dtype::kF32) return copy_row_shared(out, row, value_bytes(f));
  const uint16_t* half = static_cast<const uint16_t*>(row);
  if (f.dtype == Dtype::kBF16) {
    for (uint32_t j = 0; j < f.dim; ++j) out[j] = widen_bf16(load_shared(half + j));
  } else {
    for (uint32_t j = 0; j < f.dim; ++j) out[j] = widen_f16(load_shared(half + j));
  }
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_FORMAT_H_
