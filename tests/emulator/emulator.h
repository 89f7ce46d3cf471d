// The emulator's branch of embstore/cuda/simt.h: each thread of a launch is a fiber of one OS thread.
//
// 1. Included by simt.h alone, with EMB_EMULATED defined; emulator.cpp is the other half, and is never instrumented by
//    a sanitizer, so that its bookkeeping orders no lanes.
// 2. Every function here that touches memory or meets other lanes is a place where the scheduler may switch.
// 3. Kernels register themselves by name when the library is loaded.
#ifndef EMBSTORE_TESTS_EMULATOR_H_
#define EMBSTORE_TESTS_EMULATOR_H_

#include <stdint.h>

namespace embstore::emulator {

struct Here {  // the thread that runs
  uint32_t block_thread;
  uint32_t block_number;
  uint32_t n_blocks;
};

extern Here here;
extern uint64_t budget;  // accesses until the scheduler is asked

enum class Meeting : uint32_t { kNone, kSync, kBallot, kShfl, kBarrier };

void ask_scheduler();
void touch_slowly();  // for instrumented code, in which the budget would be a race

// What an access begins with.
static inline void touch() {
#if defined(__SANITIZE_THREAD__)
  touch_slowly();
#else
  if (--budget == 0) ask_scheduler();
#endif
}

// Waits for the 1 << log_lanes lanes of this thread's tile. Returns the ballot, or the value of lane `from`.
uint64_t meet(Meeting what, uint32_t log_lanes, uint64_t value, uint32_t from);

// Waits for all threads of the block that have not ended.
void meet_block();

// The block's shared memory of one declaration. `site` is 0 at first and belongs to the emulator.
void* shared(uint32_t* site, uint64_t n_bytes, const char* name);

// Ends the launch with an error.
[[noreturn]] void fail(const char* message);

struct Registration {
  Registration(const char* name, void (*run)(const void* args), uint64_t args_bytes);
};

constexpr uint32_t log_of(uint32_t lanes) { return lanes == 1 ? 0 : 1 + log_of(lanes / 2); }

}  // namespace embstore::emulator

#define EMB_DEVICE static inline
#define EMB_METHOD inline

#define EMB_KERNEL_RESIDENT(name, Args, resident) EMB_KERNEL(name, Args)
#define EMB_KERNEL(name, Args)                                                                          \
  static_assert(sizeof(Args) % 8 == 0, "fields of 8 bytes each");                                       \
  static void name(const Args a);                                                                       \
  static void name##_on(const void* args) { name(*static_cast<const Args*>(args)); }                    \
  static const ::embstore::emulator::Registration name##_registration(#name, &name##_on, sizeof(Args)); \
  static void name(const Args a)

#define EMB_SHARED(type, name, n)                                       \
  static uint32_t name##_site;                                          \
  static_assert(alignof(type) <= 16, "shared memory is aligned to 16"); \
  type(&name)[n] = *static_cast<type(*)[n]>(::embstore::emulator::shared(&name##_site, sizeof(type) * (n), #name))

namespace embstore::cuda {

EMB_DEVICE uint32_t block_thread() { return emulator::here.block_thread; }
EMB_DEVICE uint32_t block_number() { return emulator::here.block_number; }
EMB_DEVICE uint32_t n_blocks() { return emulator::here.n_blocks; }
EMB_DEVICE void block_barrier() { emulator::meet_block(); }

namespace lanes {

template <uint32_t G>
EMB_DEVICE uint32_t ballot(bool is_set) {
  if constexpr (G == 1) return emulator::touch(), is_set;
  return static_cast<uint32_t>(emulator::meet(emulator::Meeting::kBallot, emulator::log_of(G), is_set, 0));
}

template <uint32_t G, class T>
EMB_DEVICE T shfl(T x, uint32_t from) {
  if constexpr (G == 1) return emulator::touch(), x;
  return static_cast<T>(emulator::meet(emulator::Meeting::kShfl, emulator::log_of(G), x, from & (G - 1)));
}

template <uint32_t G>
EMB_DEVICE void sync() {
  if constexpr (G == 1) return emulator::touch();
  emulator::meet(emulator::Meeting::kSync, emulator::log_of(G), 0, 0);
}

}  // namespace lanes

namespace words {

template <class T>
constexpr bool kIsWord = false;
template <>
inline constexpr bool kIsWord<uint32_t> = true;
template <>
inline constexpr bool kIsWord<uint64_t> = true;

template <class T>
EMB_DEVICE void touch(const T* at) {
  static_assert(kIsWord<T>, "uint32_t or uint64_t");
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) emulator::fail("misaligned: an access to a word");
  emulator::touch();
}

}  // namespace words

template <class T>
EMB_DEVICE T load_relaxed(const T* at) {
  words::touch(at);
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}

template <class T>
EMB_DEVICE T load_acquire(const T* at) {
  words::touch(at);
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

EMB_DEVICE void store_relaxed(uint32_t* at, uint32_t x) { words::touch(at), __atomic_store_n(at, x, __ATOMIC_RELAXED); }
EMB_DEVICE void store_relaxed(uint64_t* at, uint64_t x) { words::touch(at), __atomic_store_n(at, x, __ATOMIC_RELAXED); }
EMB_DEVICE void store_release(uint32_t* at, uint32_t x) { words::touch(at), __atomic_store_n(at, x, __ATOMIC_RELEASE); }
EMB_DEVICE void store_release(uint64_t* at, uint64_t x) { words::touch(at), __atomic_store_n(at, x, __ATOMIC_RELEASE); }

template <class T>
EMB_DEVICE T compare_swap(T* at, T expected, T desired) {
  words::touch(at);
  __atomic_compare_exchange_n(at, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

template <class T>
EMB_DEVICE T fetch_add(T* at, T x) {
  words::touch(at);
  return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}

template <class T>
EMB_DEVICE T fetch_or(T* at, T x) {
  words::touch(at);
  return __atomic_fetch_or(at, x, __ATOMIC_RELAXED);
}

template <class T>
EMB_DEVICE T fetch_and(T* at, T x) {
  words::touch(at);
  return __atomic_fetch_and(at, x, __ATOMIC_RELAXED);
}

template <class T>
EMB_DEVICE T exchange(T* at, T x) {
  words::touch(at);
  return __atomic_exchange_n(at, x, __ATOMIC_RELAXED);
}

// No fiber switches inside these two: the loop never runs twice.
template <class T>
EMB_DEVICE T fetch_min(T* at, T x) {
  words::touch(at);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (x < old && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class T>
EMB_DEVICE T fetch_max(T* at, T x) {
  words::touch(at);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (x > old && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

// The scheduler may switch between the halves: 16 bytes are not one access.
EMB_DEVICE Pair load16(const void* at) {
  const uint64_t* const words = static_cast<const uint64_t*>(at);
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) emulator::fail("misaligned: load16");
  emulator::touch();
  const uint64_t x = words[0];
  emulator::touch();
  return Pair{x, words[1]};
}

EMB_DEVICE void store16(void* at, Pair x) {
  uint64_t* const words = static_cast<uint64_t*>(at);
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) emulator::fail("misaligned: store16");
  emulator::touch();
  words[0] = x.x;
  emulator::touch();
  words[1] = x.y;
}

EMB_DEVICE uint32_t n_bits(uint32_t word) { return static_cast<uint32_t>(__builtin_popcount(word)); }
EMB_DEVICE uint32_t first_bit(uint32_t word) { return static_cast<uint32_t>(__builtin_ctz(word)); }

}  // namespace embstore::cuda

#endif  // EMBSTORE_TESTS_EMULATOR_H_
