// The value a row is born with: a pure function of seed, table name, key and column.
#ifndef EMBSTORE_CORE_INITIALIZER_H_
#define EMBSTORE_CORE_INITIALIZER_H_

#include "portable.h"
#include "random.h"

namespace embstore {

enum class InitKind : int32_t { kConstant = 0, kUniform = 1, kNormal = 2, kTruncatedNormal = 3 };

struct Initializer {
  InitKind kind;
  float a;  // value, low or mean
  float b;  // high or std
  uint64_t stream;
};

EMB_CONST uint32_t kTruncationAttempts = 16;

EMB_CONST float kTruncation = 2.0f;

EMB_FN float uniform_value(const Initializer& init, float u) { return init.a + (init.b - init.a) * u; }

EMB_FN float normal_value(const Initializer& init, float z) { return init.a + init.b * z; }

EMB_FN bool is_truncated(float z) { return !(z >= -kTruncation && z <= kTruncation); }

// The z of one column from attempt number `attempt` on.
EMB_FN float truncated_normal(const Initializer& init, uint64_t key, uint32_t block, uint32_t lane, uint32_t attempt) {
  float z = 0;
  for (; attempt < kTruncationAttempts; ++attempt) {
    const Words4 w = words_of(init.stream, key, Purpose::kInitial, block, attempt);
    const CosSin pair = lane < 2 ? normal_pair(w.x[0], w.x[1]) : normal_pair(w.x[2], w.x[3]);
    z = (lane & 1) ? pair.sin : pair.cos;
    if (!is_truncated(z)) return z;
  }
  return z < 0.0f ? -kTruncation : kTruncation;
}

// out[0..4) = the initial values of columns 4 * block .. 4 * block + 3.
EMB_FN void initial_block(const Initializer& init, uint64_t key, uint32_t block, float* out) {
  if (init.kind == InitKind::kConstant) {
    for (int lane = 0; lane < 4; ++lane) out[lane] = init.a;
    return;
  }
  if (init.kind == InitKind::kTruncatedNormal) {
    for (uint32_t lane = 0; lane < 4; ++lane)
      out[lane] = normal_value(init, truncated_normal(init, key, block, lane, 0));
    return;
  }
  const Words4 w = words_of(init.stream, key, Purpose::kInitial, block, 0);
  if (init.kind == InitKind::kUniform) {
    for (int lane = 0; lane < 4; ++lane) out[lane] = uniform_value(init, uniform_of(w.x[lane]));
    return;
  }
  const CosSin first = normal_pair(w.x[0], w.x[1]);
  const CosSin second = normal_pair(w.x[2], w.x[3]);
  out[0] = normal_value(init, first.cos);
  out[1] = normal_value(init, first.sin);
  out[2] = normal_value(init, second.cos);
  out[3] = normal_value(init, second.sin);
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_INITIALIZER_H_
