// What device code may say of threads, tiles, blocks and shared memory: one vocabulary for a card and its emulator.
//
// 1. Under NVRTC and nvcc these are PTX or intrinsics; with EMB_EMULATED (tests/emulator) they call the emulator, which
//    runs each thread as a fiber and may switch at any of them.
// 2. A Tile is G lanes of a warp, aligned; all of its lanes must meet at each of its collectives.
// 3. Memory that several threads of a launch touch while one of them writes it goes through the functions below;
//    what a launch leaves behind is seen by the next one on the same stream, plainly.
// 4. Offsets are 64 bits wide; every loop over work strides by the grid.
#ifndef EMBSTORE_CUDA_SIMT_H_
#define EMBSTORE_CUDA_SIMT_H_

#include "../core/portable.h"

// The contract (to be implemented in both branches):
//
//   EMB_DEVICE                      qualifiers of a device function: `__device__ static inline`, or `static inline`
//   EMB_KERNEL(name, Args)          begins a kernel `void name(Args a)`; Args is a struct whose fields have 8 bytes each
//                                   (pointers, uint64_t, int64_t, double); launched in blocks of kBlockThreads
//   EMB_SHARED(type, name, n)       declares `type name[n]` in the block's shared memory, inside a kernel or function
//   kBlockThreads                   256
//
// namespace embstore::cuda:
//   uint32_t block_thread()         number of this thread in its block;   uint32_t block_number(), n_blocks()
//   uint64_t grid_thread()          of all;  uint64_t grid_threads()
//   void block_barrier()            all threads of the block meet; shared and global memory ordered
//   template <uint32_t G> struct Tile { G = 1, 2, 4, 8, 16, 32
//     static Tile here();  uint32_t lane() const;                     0 .. G - 1
//     uint64_t number() const; static uint64_t count();               of tiles in the grid
//     uint32_t ballot(bool) const;  bool any(bool) const;             bit i of ballot: lane i
//     T shfl(T x, uint32_t from) const;  T shfl_xor(T x, uint32_t by) const;   uint32_t, uint64_t, float
//     void sync() const;  }
//   T load_relaxed(const T*), load_acquire(const T*); void store_relaxed(T*, T), store_release(T*, T)   uint32_t, uint64_t
//   T compare_swap(T* at, T expected, T desired)   relaxed; the old value
//   T fetch_add, fetch_or, fetch_and, fetch_min, fetch_max, exchange(T*, T)   relaxed; the old value
//   struct alignas(16) Pair { uint64_t x, y; };  Pair load16(const void*);  void store16(void*, Pair)   plain, aligned
//   uint32_t n_bits(uint32_t), first_bit(uint32_t) (of a nonzero word)

#endif  // EMBSTORE_CUDA_SIMT_H_
