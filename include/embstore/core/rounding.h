// Conversions between float32 and the 16-bit row types, to nearest even or stochastic.
//
// Mostly integer code, so that every engine rounds alike, and without branches, so that loops become vectors;
// docs/semantics.md, section 6, point 8.
#ifndef EMBSTORE_CORE_ROUNDING_H_
#define EMBSTORE_CORE_ROUNDING_H_

#include "portable.h"
#include "types.h"

namespace embstore {

EMB_FN float widen_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

EMB_FN uint16_t narrow_bf16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t nearest = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16) | 0x40u : nearest);  // NaN stays NaN
}

EMB_FN float widen_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7FFFu;
  const uint32_t tiny =
      bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-08f);  // 2^-24
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t not_finite = 0x7F800000u | ((magnitude & 0x3FFu) << 13);
  const uint32_t finite = magnitude >= 0x0400u ? normal : tiny;
  return float_of(sign | (magnitude >= 0x7C00u ? not_finite : finite));
}

EMB_FN uint16_t narrow_f16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t a = u & 0x7FFFFFFFu;
  const uint32_t normal = (a + 0xFFFu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t tiny = bits_of(absolute(x) + 0.5f) - 0x3F000000u;  // in units of 2^-24, the last place of 0.5
  const uint32_t finite = a >= 0x38800000u ? normal : tiny;
  const uint32_t ordered = a >= 0x477FF000u ? 0x7C00u : finite;  // 65520 and more round to infinity
  const uint32_t magnitude = a > 0x7F800000u ? 0x7E00u | ((a >> 13) & 0x1FFu) : ordered;
  return static_cast<uint16_t>(((u >> 16) & 0x8000u) | magnitude);
}

EMB_FN float widen(Dtype dtype, uint16_t h) { return dtype == Dtype::kBF16 ? widen_bf16(h) : widen_f16(h); }

EMB_FN uint16_t narrow(Dtype dtype, float x) { return dtype == Dtype::kBF16 ? narrow_bf16(x) : narrow_f16(x); }

// The 16-bit number at or next below |x|, with the sign of x.
EMB_FN uint16_t truncate(Dtype dtype, float x) {
  const uint16_t nearest = narrow(dtype, x);
  return absolute(widen(dtype, nearest)) > absolute(x) ? static_cast<uint16_t>(nearest - 1) : nearest;
}

// Rounds away from zero with the probability that makes the expectation x; r is uniform in [0, 1).
EMB_FN uint16_t narrow_stochastic(Dtype dtype, float x, float r) {
  const uint16_t down = truncate(dtype, x);
  const uint16_t up = static_cast<uint16_t>(down + 1);
  const float low = absolute(widen(dtype, down));
  const float high = absolute(widen(dtype, up));
  const uint16_t chosen = r < (absolute(x) - low) / (high - low) ? up : down;
  return is_finite(x) && is_finite(high) ? chosen : narrow(dtype, x);
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_ROUNDING_H_
