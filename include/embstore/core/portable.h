// The one place that knows the compiler: integer types, function qualifiers, wide products, square roots, bit casts.
//
// 1. Compiles under g++, clang++, nvcc and NVRTC; no other core header has an #ifdef on the compiler.
// 2. Every core function is EMB_FN: internal linkage, so that a translation unit built for AVX-512 never lends its
//    copy of a function to one built for the baseline.
// 3. No function here allocates, throws or keeps state; all may be called from any thread.
#ifndef EMBSTORE_CORE_PORTABLE_H_
#define EMBSTORE_CORE_PORTABLE_H_

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef signed int int32_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef signed long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDACC__)  // NVRTC defines it too
#define EMB_FN __host__ __device__ static inline
#else
#define EMB_FN static inline
#endif

// Before a loop that device code shall not unroll, so that the arrays it walks stay in memory and take no registers.
#if defined(__CUDACC__)
#define EMB_ROLLED _Pragma("unroll 1")
#else
#define EMB_ROLLED
#endif

// A scalar whose value alone is used. Device code may read a constexpr of the host by value, so that no qualifier is
// needed; with __device__ nvcc would hide it from the host. To bind a reference to one in device code does not compile.
#define EMB_CONST static constexpr

#if defined(__SANITIZE_THREAD__)
#define EMB_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMB_TSAN 1
#endif
#endif
#ifndef EMB_TSAN
#define EMB_TSAN 0
#endif

namespace embstore {

EMB_FN uint64_t mulhi(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

EMB_FN float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

EMB_FN double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

EMB_FN uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

EMB_FN float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

EMB_FN bool is_finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }

EMB_FN float absolute(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

}  // namespace embstore

#endif  // EMBSTORE_CORE_PORTABLE_H_
