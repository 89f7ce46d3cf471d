// Two kernels that need nothing but portable.h, for the tests of what compiles, keeps, loads and launches kernels.
#include "embstore/core/portable.h"

#define EMB_KERNEL(name, Args) extern "C" __global__ void __launch_bounds__(256) name(Args a)

struct ScaleArgs {
  const float* x;  // n of them
  float* out;
  uint64_t n;
  double by; /* and then 1 is added:
    with no contraction */
};

EMB_KERNEL(sample_scale, ScaleArgs) {
  const float by = static_cast<float>(a.by);
  for (uint64_t i = blockIdx.x * uint64_t{256} + threadIdx.x; i < a.n; i += gridDim.x * uint64_t{256}) {
    a.out[i] = a.x[i] * by + 1.0f;
  }
}

struct BlocksArgs {
  uint64_t* n_blocks;
  int64_t value;
};

EMB_KERNEL(sample_blocks, BlocksArgs) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.n_blocks[0] = gridDim.x;
    a.n_blocks[1] = static_cast<uint64_t>(a.value);
  }
}
