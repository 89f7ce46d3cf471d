// CRC-32 of zlib, PNG and Ethernet by carry-less multiplication, at memory speed.
//
// V. Gopal and others, Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009: 64 bytes
// at a time are folded onto the next 64, then 16 onto 16, and what is left is reduced by Barrett's method. The
// constants are powers of x modulo the polynomial 0x04C11DB7, bits reflected.
#ifndef EMBSTORE_CPU_CRC32_H_
#define EMBSTORE_CPU_CRC32_H_

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace embstore::cpu {

#if defined(__x86_64__)

inline bool has_crc32() { return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); }

#define EMB_CLMUL __attribute__((target("pclmul,sse4.1")))

// `state` moved on by the distance that the two powers of `by` stand for, and joined with what lies there.
EMB_CLMUL inline __m128i crc_fold(__m128i state, __m128i by, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(state, by, 0x00);
  const __m128i high = _mm_clmulepi64_si128(state, by, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// n is a multiple of 16 and at least 64; `crc` and the result without their final XOR.
EMB_CLMUL inline uint32_t crc_folded(const uint8_t* data, size_t n, uint32_t crc) {
  const __m128i by_64 = _mm_set_epi64x(0x01C6E41596, 0x0154442BD4);    // x^480, x^544
  const __m128i by_16 = _mm_set_epi64x(0x00CCAA009E, 0x01751997D0);    // x^96, x^160
  const __m128i by_8 = _mm_set_epi64x(0, 0x0163CD6124);                // x^64
  const __m128i barrett = _mm_set_epi64x(0x01F7011641, 0x01DB710641);  // quotient of x^64, polynomial
  const __m128i low_32 = _mm_set_epi32(0, 0, 0, -1);
  const auto at = [&](size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + i)); };
  __m128i part[4] = {_mm_xor_si128(at(0), _mm_cvtsi32_si128(static_cast<int>(crc))), at(16), at(32), at(48)};
  size_t i = 64;
  for (; i + 64 <= n; i += 64)
    for (size_t lane = 0; lane < 4; ++lane) part[lane] = crc_fold(part[lane], by_64, at(i + 16 * lane));
  __m128i state = part[0];
  for (size_t lane = 1; lane < 4; ++lane) state = crc_fold(state, by_16, part[lane]);
  for (; i < n; i += 16) state = crc_fold(state, by_16, at(i));
  state = _mm_xor_si128(_mm_clmulepi64_si128(state, by_16, 0x10), _mm_srli_si128(state, 8));  // 128 bits to 96
  state = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(state, low_32), by_8, 0x00), _mm_srli_si128(state, 4));
  __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(state, low_32), barrett, 0x10);
  quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_32), barrett, 0x00);
  return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(state, quotient), 1));
}

#undef EMB_CLMUL

// The CRC-32 of what had `crc` and then these bytes.
inline uint32_t crc32(const uint8_t* data, size_t n, uint32_t crc) {
  crc = ~crc;
  const size_t n_folded = n >= 64 ? n / 16 * 16 : 0;
  if (n_folded > 0) crc = crc_folded(data, n_folded, crc);
  for (size_t i = n_folded; i < n; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

#else

inline bool has_crc32() { return false; }
inline uint32_t crc32(const uint8_t*, size_t, uint32_t) { return 0; }

#endif

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_CRC32_H_
