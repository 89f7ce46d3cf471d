// The row loops for every machine of the architecture.
#include "paths.h"

namespace embstore::cpu {

const Kernels& kernels_baseline() {
  static const Kernels kernels = make_kernels("baseline");
  return kernels;
}

}  // namespace embstore::cpu
