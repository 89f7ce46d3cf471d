// The row loops for x86-64 with AVX512; the build gives this file its flags, and no other.
#include "paths.h"

#if defined(__AVX512F__)

namespace embstore::cpu {

const Kernels& kernels_avx512() {
  static const Kernels kernels = make_kernels("avx512");
  return kernels;
}

}  // namespace embstore::cpu

#endif
