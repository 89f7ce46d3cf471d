// The row loops for x86-64 with AVX2; the build gives this file its flags, and no other.
#include "paths.h"

#if defined(__AVX2__)

namespace embstore::cpu {

const Kernels& kernels_avx2() {
  static const Kernels kernels = make_kernels("avx2");
  return kernels;
}

}  // namespace embstore::cpu

#endif
