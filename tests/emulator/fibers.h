// Fibers: stacks that one OS thread switches between, announced to the sanitizers.
//
// 1. switch_fibers saves what a call must keep (x86-64 System V), or is swapcontext on other machines.
// 2. Under ThreadSanitizer a switch orders nothing.
// 3. The code here is not instrumented by any sanitizer: EMB_EMULATOR_TSAN and EMB_EMULATOR_ASAN say what the rest is.
#ifndef EMBSTORE_TESTS_FIBERS_H_
#define EMBSTORE_TESTS_FIBERS_H_

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(EMB_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#elif defined(EMB_EMULATOR_ASAN)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace embstore::emulator {

#if defined(EMB_EMULATOR_TSAN)
constexpr bool kTsan = true;
static inline void release(void* tag) { __tsan_release(tag); }
static inline void acquire(void* tag) { __tsan_acquire(tag); }
#else
constexpr bool kTsan = false;
static inline void release(void*) {}
static inline void acquire(void*) {}
#endif

#if defined(EMB_EMULATOR_TSAN) || defined(EMB_EMULATOR_ASAN)
constexpr uint64_t kStackBytes = 256 << 10;
#else
constexpr uint64_t kStackBytes = 64 << 10;
#endif

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  uint64_t stack_bytes = kStackBytes;
  void* of_tsan = nullptr;
  uint32_t number = 0;
};

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* resume);
asm(R"(
  .text
  .hidden emulator_switch
  .globl emulator_switch
  .type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
  .size emulator_switch, . - emulator_switch
)");
#endif

// Makes a fiber begin at `entry`, which never returns; whatever it did before is forgotten.
static inline void reset(Fiber* fiber, void (*entry)()) {
#if defined(EMB_EMULATOR_TSAN)
  if (fiber->of_tsan != nullptr) __tsan_destroy_fiber(fiber->of_tsan);
  fiber->of_tsan = __tsan_create_fiber(0);
#elif defined(EMB_EMULATOR_ASAN)
  __asan_unpoison_memory_region(fiber->stack, kStackBytes);
#endif
  // The tops of the stacks are spread over the sets of a cache.
  const uint64_t usable = kStackBytes - 64 * (fiber->number % 64);
#if defined(__x86_64__)
  void** const top = reinterpret_cast<void**>(fiber->stack + usable) - 3;
  top[0] = nullptr;  // the return address of `entry`, 8 past a multiple of 16
  top[-1] = reinterpret_cast<void*>(entry);
  for (int saved = 2; saved <= 7; ++saved) top[-saved] = nullptr;
  fiber->stack_pointer = top - 7;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = usable;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
#endif
}

// Gives a fiber a stack, above a page that may not be touched. Returns whether there was memory.
static inline bool make(Fiber* fiber, uint32_t number, void (*entry)()) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  void* const all =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return false;
  mprotect(all, page, PROT_NONE);
  fiber->stack = static_cast<char*>(all) + page;
  fiber->number = number;
  reset(fiber, entry);
  return true;
}

// Makes `fiber` stand for the OS thread that runs now.
static inline void become_main([[maybe_unused]] Fiber* fiber) {
#if defined(EMB_EMULATOR_TSAN)
  fiber->of_tsan = __tsan_get_current_fiber();
#elif defined(EMB_EMULATOR_ASAN)
  pthread_attr_t of_thread;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &of_thread);
  pthread_attr_getstack(&of_thread, &bottom, &fiber->stack_bytes);
  pthread_attr_destroy(&of_thread);
  fiber->stack = static_cast<char*>(bottom);
#endif
}

// What a fiber does first after a switch to it.
static inline void arrive([[maybe_unused]] void* fake_stack) {
#if defined(EMB_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

static inline void switch_fibers(Fiber* from, Fiber* to) {
#if defined(EMB_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to->of_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  void* fake_stack = nullptr;
#if defined(EMB_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&fake_stack, to->stack, to->stack_bytes);
#endif
#if defined(__x86_64__)
  emulator_switch(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->context, &to->context);
#endif
  arrive(fake_stack);
}

}  // namespace embstore::emulator

#endif  // EMBSTORE_TESTS_FIBERS_H_
