// How bytes move between one writer and lock-free readers.
//
// 1. A bucket's control word is odd while its writer changes the bucket, or a row that the bucket names.
// 2. A reader that saw the same even word before and after has seen the bucket and the row whole.
// 3. The bytes in between are moved by plain accesses, and under ThreadSanitizer by relaxed atomic ones.
#ifndef EMBSTORE_CPU_SHARED_H_
#define EMBSTORE_CPU_SHARED_H_

#include <sched.h>

#include "../core/portable.h"

namespace embstore::cpu {

template <class T>
EMB_FN T load_shared(const T* from) {
#if EMB_TSAN
  return __atomic_load_n(from, __ATOMIC_RELAXED);
#else
  return *from;
#endif
}

template <class T>
EMB_FN void store_shared(T* to, T value) {
#if EMB_TSAN
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
#else
  *to = value;
#endif
}

// n_bytes is even; rows begin at multiples of 4.
EMB_FN void copy_row_shared(void* to, const void* from, uint32_t n_bytes) {
#if EMB_TSAN
  const uint16_t* source = static_cast<const uint16_t*>(from);
  uint16_t* target = static_cast<uint16_t*>(to);
  for (uint32_t i = 0; i < n_bytes / 2; ++i)
    __atomic_store_n(target + i, __atomic_load_n(source + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
#else
  __builtin_memcpy(to, from, n_bytes);
#endif
}

EMB_FN void begin_write(uint32_t* control) {
  __atomic_store_n(control, __atomic_load_n(control, __ATOMIC_RELAXED) + 1u, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
}

EMB_FN void end_write(uint32_t* control) {
  __atomic_store_n(control, __atomic_load_n(control, __ATOMIC_RELAXED) + 1u, __ATOMIC_RELEASE);
}

// Waits out a writer, whose thread may have lost its processor; the version to compare with later.
EMB_FN uint32_t begin_read(const uint32_t* control) {
  for (uint32_t n_tries = 1;; ++n_tries) {
    const uint32_t version = __atomic_load_n(control, __ATOMIC_ACQUIRE);
    if ((version & 1u) == 0) return version;
    if (n_tries % 128 == 0) sched_yield();
  }
}

EMB_FN bool is_unchanged(const uint32_t* control, uint32_t version) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return __atomic_load_n(control, __ATOMIC_RELAXED) == version;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_SHARED_H_
