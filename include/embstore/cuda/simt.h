// What device code may say of threads, tiles, blocks and shared memory: one vocabulary for a card and its emulator.
//
// 1. Under NVRTC and nvcc these are PTX or intrinsics; with EMB_EMULATED (tests/emulator) they call the emulator, which
//    runs each thread as a fiber and may switch at any of them.
// 2. A Tile is G lanes of a warp, aligned; all of its lanes must meet at each of its collectives.
// 3. Memory that several threads of a launch touch while one of them writes it goes through the functions below;
//    what a launch leaves behind is seen by the next one on the same stream, plainly.
// 4. Offsets are 64 bits wide; every loop over work strides by the grid.
// 5. A kernel's only parameter is a struct whose fields have 8 bytes each: pointers, uint64_t, int64_t, double.
#ifndef EMBSTORE_CUDA_SIMT_H_
#define EMBSTORE_CUDA_SIMT_H_

#include "../core/portable.h"

namespace embstore::cuda {

EMB_CONST uint32_t kBlockThreads = 256;  // of every launch

struct alignas(16) Pair {
  uint64_t x;
  uint64_t y;
};

}  // namespace embstore::cuda

#if defined(__CUDACC__)

#define EMB_DEVICE __device__ static inline  // a function
#define EMB_METHOD __device__ inline         // a member

// Begins a kernel `void name(Args a)`; `name_of_many` runs it side by side, once for each row of blocks. Blocks of
// `resident` shall fit on a multiprocessor at once, which bounds the registers.
#define EMB_KERNEL_RESIDENT(name, Args, resident)                                                       \
  static_assert(sizeof(Args) % 8 == 0, "fields of 8 bytes each");                                       \
  __device__ __forceinline__ void body_of_##name(const Args& a);                                        \
  extern "C" __global__ void __launch_bounds__(256, resident) name(const Args a) { body_of_##name(a); } \
  extern "C" __global__ void __launch_bounds__(256, resident) name##_of_many(const Args* all) {         \
    body_of_##name(all[blockIdx.y]);                                                                    \
  }                                                                                                     \
  __device__ __forceinline__ void body_of_##name(const Args& a)

#define EMB_KERNEL(name, Args) EMB_KERNEL_RESIDENT(name, Args, 1)

// Declares `type name[n]`, uninitialized, one for the block.
#define EMB_SHARED(type, name, n) __shared__ type name[n]

namespace embstore::cuda {

EMB_DEVICE uint32_t block_thread() { return threadIdx.x; }
EMB_DEVICE uint32_t block_number() { return blockIdx.x; }
EMB_DEVICE uint32_t n_blocks() { return gridDim.x; }

// All threads of the block meet; shared and global memory are ordered among them.
EMB_DEVICE void block_barrier() { __syncthreads(); }

namespace lanes {  // what a Tile is made of

template <uint32_t G>
EMB_DEVICE uint32_t mask() {  // of this tile in its warp
  return (0xFFFFFFFFu >> (32 - G)) << (threadIdx.x & 31 & ~(G - 1));
}

template <uint32_t G>
EMB_DEVICE uint32_t ballot(bool is_set) {
  return (__ballot_sync(mask<G>(), is_set) & mask<G>()) >> (threadIdx.x & 31 & ~(G - 1));
}

template <uint32_t G>
EMB_DEVICE uint32_t shfl(uint32_t x, uint32_t from) {
  return __shfl_sync(mask<G>(), x, static_cast<int>(from), static_cast<int>(G));
}

template <uint32_t G>
EMB_DEVICE uint64_t shfl(uint64_t x, uint32_t from) {
  return __shfl_sync(mask<G>(), static_cast<unsigned long long>(x), static_cast<int>(from), static_cast<int>(G));
}

template <uint32_t G>
EMB_DEVICE void sync() {
  __syncwarp(mask<G>());
}

}  // namespace lanes

// The clobbers of memory keep plain accesses of the same thread on their side.
EMB_DEVICE uint32_t load_relaxed(const uint32_t* at) {
  uint32_t x;
  asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
  return x;
}

EMB_DEVICE uint64_t load_relaxed(const uint64_t* at) {
  uint64_t x;
  asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
  return x;
}

EMB_DEVICE uint32_t load_acquire(const uint32_t* at) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
  return x;
}

EMB_DEVICE uint64_t load_acquire(const uint64_t* at) {
  uint64_t x;
  asm volatile("ld.acquire.gpu.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
  return x;
}

EMB_DEVICE void store_relaxed(uint32_t* at, uint32_t x) {
  asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}

EMB_DEVICE void store_relaxed(uint64_t* at, uint64_t x) {
  asm volatile("st.relaxed.gpu.u64 [%0], %1;" ::"l"(at), "l"(x) : "memory");
}

EMB_DEVICE void store_release(uint32_t* at, uint32_t x) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}

EMB_DEVICE void store_release(uint64_t* at, uint64_t x) {
  asm volatile("st.release.gpu.u64 [%0], %1;" ::"l"(at), "l"(x) : "memory");
}

namespace words {  // the intrinsics know unsigned long long, which uint64_t need not be

EMB_DEVICE unsigned int* of(uint32_t* at) { return at; }
EMB_DEVICE unsigned long long* of(uint64_t* at) { return reinterpret_cast<unsigned long long*>(at); }
EMB_DEVICE unsigned int of(uint32_t x) { return x; }
EMB_DEVICE unsigned long long of(uint64_t x) { return x; }

}  // namespace words

// T is uint32_t or uint64_t. Each returns the old value and orders nothing.
template <class T>
EMB_DEVICE T compare_swap(T* at, T expected, T desired) {
  return atomicCAS(words::of(at), words::of(expected), words::of(desired));
}

template <class T>
EMB_DEVICE T fetch_add(T* at, T x) {
  return atomicAdd(words::of(at), words::of(x));
}

template <class T>
EMB_DEVICE T fetch_or(T* at, T x) {
  return atomicOr(words::of(at), words::of(x));
}

template <class T>
EMB_DEVICE T fetch_and(T* at, T x) {
  return atomicAnd(words::of(at), words::of(x));
}

template <class T>
EMB_DEVICE T fetch_min(T* at, T x) {
  return atomicMin(words::of(at), words::of(x));
}

template <class T>
EMB_DEVICE T fetch_max(T* at, T x) {
  return atomicMax(words::of(at), words::of(x));
}

template <class T>
EMB_DEVICE T exchange(T* at, T x) {
  return atomicExch(words::of(at), words::of(x));
}

// 16 aligned bytes at once, plainly: not for memory that another thread may write meanwhile.
EMB_DEVICE Pair load16(const void* at) {
  const ulonglong2 x = *static_cast<const ulonglong2*>(at);
  return Pair{x.x, x.y};
}

EMB_DEVICE void store16(void* at, Pair x) { *static_cast<ulonglong2*>(at) = make_ulonglong2(x.x, x.y); }

EMB_DEVICE uint32_t n_bits(uint32_t word) { return static_cast<uint32_t>(__popc(word)); }
EMB_DEVICE uint32_t first_bit(uint32_t word) { return static_cast<uint32_t>(__ffs(static_cast<int>(word)) - 1); }

}  // namespace embstore::cuda

#elif defined(EMB_EMULATED)

#include <emulator.h>  // of tests/emulator; the build of the tests puts it on the include path

#else
#error "simt.h is for NVRTC, nvcc and the emulator (EMB_EMULATED)"
#endif

namespace embstore::cuda {

EMB_DEVICE uint64_t grid_thread() { return static_cast<uint64_t>(block_number()) * kBlockThreads + block_thread(); }
EMB_DEVICE uint64_t grid_threads() { return static_cast<uint64_t>(n_blocks()) * kBlockThreads; }

// G lanes that work on one thing.
template <uint32_t G>
struct Tile {
  static_assert(G != 0 && G <= 32 && (G & (G - 1)) == 0, "1, 2, 4, 8, 16 or 32 lanes");

  EMB_METHOD static Tile here() { return Tile(); }
  EMB_METHOD uint32_t lane() const { return block_thread() & (G - 1); }

  // Among the tiles of the grid, and how many those are.
  EMB_METHOD uint64_t number() const { return grid_thread() / G; }
  EMB_METHOD static uint64_t count() { return grid_threads() / G; }

  // Bit i is what lane i said.
  EMB_METHOD uint32_t ballot(bool is_set) const { return lanes::ballot<G>(is_set); }
  EMB_METHOD bool any(bool is_set) const { return ballot(is_set) != 0; }

  // The x of lane `from`, modulo G.
  EMB_METHOD uint32_t shfl(uint32_t x, uint32_t from) const { return lanes::shfl<G>(x, from); }
  EMB_METHOD uint64_t shfl(uint64_t x, uint32_t from) const { return lanes::shfl<G>(x, from); }
  EMB_METHOD float shfl(float x, uint32_t from) const { return float_of(lanes::shfl<G>(bits_of(x), from)); }

  // The x of the lane whose number differs in the bits of `by`.
  template <class T>
  EMB_METHOD T shfl_xor(T x, uint32_t by) const {
    return shfl(x, lane() ^ by);
  }

  // The lanes meet; their memory is ordered among them.
  EMB_METHOD void sync() const { lanes::sync<G>(); }
};

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_SIMT_H_
