// What users' arrays need before kernels take them.
#include "embstore/cuda/arena.h"

using namespace embstore;
using namespace embstore::cuda;

struct WidenKeysArgs {
  const uint32_t* keys;  // (n,)
  uint64_t n;
  uint64_t is_signed;
  uint64_t* out;  // (n,)
};

EMB_KERNEL(widen_keys, WidenKeysArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads())
    a.out[i] = a.is_signed != 0 ? static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(a.keys[i])))
                                : uint64_t{a.keys[i]};
}

struct WidenHalvesArgs {
  const uint16_t* halves;  // (n,) float16
  uint64_t n;
  float* out;  // (n,)
};

EMB_KERNEL(widen_halves, WidenHalvesArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.out[i] = widen_f16(a.halves[i]);
}

// What a stream does by itself, as kernels: so that they run side by side for many tables.

struct FillWordsArgs {
  uint32_t* to;
  uint64_t n;
  uint64_t word;
};

EMB_KERNEL(fill_words, FillWordsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.to[i] = static_cast<uint32_t>(a.word);
}

struct CopyWordsArgs {
  const uint32_t* from;
  uint32_t* to;
  uint64_t n;
};

EMB_KERNEL(copy_words, CopyWordsArgs) {
  for (uint64_t i = grid_thread(); i < a.n; i += grid_threads()) a.to[i] = a.from[i];
}
