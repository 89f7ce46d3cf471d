// The instruction sets that the row loops are compiled for, and the choice between them.
#ifndef EMBSTORE_SRC_PATHS_PATHS_H_
#define EMBSTORE_SRC_PATHS_PATHS_H_

#include "embstore/cpu/kernels.h"

namespace embstore::cpu {

const Kernels& kernels_baseline();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace embstore::cpu

#endif  // EMBSTORE_SRC_PATHS_PATHS_H_
