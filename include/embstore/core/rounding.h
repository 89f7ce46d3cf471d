// Conversions between float32 and the 16-bit row types, to nearest even or stochastic.
//
// Integer code alone, so that every engine rounds alike; docs/semantics.md, section 6, point 8.
#ifndef EMBSTORE_CORE_ROUNDING_H_
#define EMBSTORE_CORE_ROUNDING_H_

#include "portable.h"
#include "types.h"

namespace embstore {

EMB_FN float widen_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

EMB_FN uint16_t narrow_bf16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

EMB_FN float widen_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  const float tiny = static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-08f;  // 2^-24
  return float_of(sign | bits_of(tiny));
}

EMB_FN uint16_t narrow_f16(float x) {
  const uint32_t u = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((a >> 13) & 0x1FFu));
  if (a >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more round to infinity
  if (a >= 0x38800000u) {                                              // normal in float16
    const uint32_t rounded = a + 0xFFFu + ((a >> 13) & 1u) - (112u << 23);
    return static_cast<uint16_t>(sign | (rounded >> 13));
  }
  if (a < 0x33000000u) return sign;  // below half of the least subnormal
  const uint32_t exponent = a >> 23;
  const uint32_t mantissa = (a & 0x7FFFFFu) | 0x800000u;
  const uint32_t shift = 126u - exponent;  // 14..24: units of 2^-24 below the binary point
  const uint32_t whole = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1u);
  const uint32_t up = rest > half || (rest == half && (whole & 1u));
  return static_cast<uint16_t>(sign | (whole + up));
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
  if (!is_finite(x)) return narrow(dtype, x);
  const uint16_t down = truncate(dtype, x);
  const uint16_t up = static_cast<uint16_t>(down + 1);
  const float low = absolute(widen(dtype, down));
  const float high = absolute(widen(dtype, up));
  if (!is_finite(high)) return narrow(dtype, x);
  return r < (absolute(x) - low) / (high - low) ? up : down;
}

}  // namespace embstore

#endif  // EMBSTORE_CORE_ROUNDING_H_
