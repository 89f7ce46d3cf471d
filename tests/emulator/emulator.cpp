// The scheduler behind emulator.h, and the C interface to it.
//
// 1. One launch runs at a time, on the OS thread that asked for it; all state is global, behind one mutex.
// 2. Seed 0: one block after another; a fiber runs until it waits or ends, and a thread that never waits costs a call.
//    Other seeds: several blocks at once; the seed chooses when to switch, and to whom.
// 3. A failed launch is left where it stands: its fibers are forgotten and the text goes to the caller.
// 4. Nothing here is instrumented. Under ThreadSanitizer each thread of a launch has a fiber, and each block its
//    memory, to itself; lanes are ordered by `release` and `acquire` on one tag per generation of a meeting. With
//    EMB_EMULATOR_ONLY_SYNC_ORDERS ballots and shuffles order nothing, which is all that CUDA promises of them.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>

#include "embstore/cuda/simt.h"
#include "fibers.h"

#define EMB_API extern "C" __attribute__((visibility("default")))

namespace embstore::emulator {

Here here;
uint64_t budget;

namespace {

constexpr uint32_t kThreads = 256;           // of a block
constexpr uint32_t kSharedBytes = 48 << 10;  // of a block: what every card has
constexpr uint32_t kMaxSites = 1024;
constexpr uint32_t kMaxResident = 4;
constexpr uint32_t kMaxBlocks = 24;  // of a launch under ThreadSanitizer, which knows some 8000 threads
constexpr uint32_t kMaxFibers = kMaxBlocks * kThreads;
constexpr uint32_t kMaxSaid = 24;  // threads, in a message
constexpr uint64_t kFastBudget = 512;
constexpr uint64_t kFastLimit = 300 * 1000 * 1000;
constexpr uint64_t kSeededLimit = 50 * 1000 * 1000;
#if defined(EMB_EMULATOR_ONLY_SYNC_ORDERS)
constexpr bool kOnlySyncOrders = true;
#else
constexpr bool kOnlySyncOrders = false;
#endif
const char* const kNames[] = {"", "sync", "ballot", "shfl", "barrier"};

enum class State : uint8_t { kUnstarted, kRunnable, kWaiting, kEnded };

struct Block;

struct Thread {
  Fiber* fiber;
  Block* block;
  uint64_t value;   // brought to a meeting, and
  uint64_t result;  // taken from it
  uint32_t from;
  uint32_t index;  // in its block
  Meeting at;
  State state;
  bool is_slow;  // this seed lets it lag behind
};

struct Record {  // of a tile that gathers
  uint32_t arrived;
  Meeting what;
  uint32_t generation;
};

struct Block {
  Thread threads[kThreads];
  Record records[6][kThreads];  // by the logarithm of its lanes and its first lane
  uint32_t number;
  uint32_t n_live;
  uint32_t n_at_barrier;
  uint32_t barrier_generation;
  uint32_t next_unstarted;
  uint32_t shared_used;
  uint32_t site_offsets[kMaxSites];  // plus 1; 0: not yet asked for
  uint64_t tags[6][kThreads][2];
  uint64_t barrier_tags[2];
  alignas(16) unsigned char shared[kSharedBytes];
};

// Of fixed size: no allocation that a sanitizer would see. Used as a stack, or as a ring.
template <class T, uint32_t capacity>
struct List {
  T items[capacity];
  uint32_t begin, n;
  T& operator[](uint64_t i) { return items[(begin + i) % capacity]; }
  void push(T x) { (*this)[n++] = x; }
  T pop_last() { return (*this)[--n]; }
  T pop_first() {
    T x = items[begin];
    begin = (begin + 1) % capacity;
    --n;
    return x;
  }
  void clear() { begin = n = 0; }
};

struct Kernel {
  const char* name;
  void (*run)(const void*);
  uint64_t args_bytes;
};

struct Launch {
  const Kernel* kernel;
  const void* args;
  uint64_t seed;
  uint64_t random;
  uint64_t granted;
  uint64_t steps;  // accesses since a thread ended
  uint64_t limit;
  uint32_t style;
  uint32_t n_begun;  // blocks
  uint32_t prefer_unstarted;
  bool has_failed;
};

constexpr uint32_t kMaxKernels = 512;
Kernel kernels[kMaxKernels];
uint32_t n_kernels;
uint32_t n_sites;
uint64_t own_limit;
std::mutex door;

Launch launch;
Thread* current;
Fiber main_fiber;
Fiber fibers[kMaxFibers];
List<Fiber*, kMaxFibers> free_fibers;
List<Fiber*, kMaxFibers> spent_fibers;  // under ThreadSanitizer: free after the launch
List<Block*, kMaxBlocks> blocks;        // of this launch: the resident, or all under ThreadSanitizer
List<Block*, kMaxBlocks> spare_blocks;
List<Thread*, 2 * kMaxResident * kThreads> runnable;  // seed 0: a queue; else a bag
uint32_t n_fibers;
char message[4096];
uint64_t launch_tag, end_tag;

void fiber_main();

uint64_t random_word() {  // SplitMix64
  uint64_t z = (launch.random += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint64_t random_below(uint64_t n) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random_word()) * n) >> 64);
}

bool is_seeded() { return launch.seed != 0; }

// --- errors ---

void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void say(const char* format, ...) {
  const uint64_t used = strlen(message);
  va_list list;
  va_start(list, format);
  vsnprintf(message + used, sizeof message - used, format, list);
  va_end(list);
}

[[noreturn]] void abandon() {
  launch.has_failed = true;
  release(&end_tag);
  switch_fibers(current->fiber, &main_fiber);
  abort();  // a forgotten fiber is never resumed
}

void say_thread(const Thread& t) {
  if (t.state == State::kWaiting)
    say(" b%ut%u@%s", t.block->number, t.index, kNames[static_cast<uint32_t>(t.at)]);
  else
    say(" b%ut%u %s", t.block->number, t.index,
        t.state == State::kEnded       ? "has ended"
        : t.state == State::kUnstarted ? "has not begun"
                                       : "runs");
}

void say_tile(const Block& block, uint32_t first, uint32_t n_lanes) {
  say(" [tile of %u:", n_lanes);
  for (uint32_t lane = first; lane < first + n_lanes; ++lane) say_thread(block.threads[lane]);
  say("]");
}

// The threads of a block in one state, neighbours in one word, but those of tiles that gather.
void say_others(const Block& block, State state, uint32_t* n_said) {
  const auto belongs = [&](uint32_t i) {
    const Thread& t = block.threads[i];
    return t.state == state && (state != State::kWaiting || t.at == Meeting::kBarrier);
  };
  for (uint32_t i = 0; i < kThreads; ++i) {
    if (!belongs(i) || ++*n_said > kMaxSaid) continue;
    uint32_t last = i;
    while (last + 1 < kThreads && belongs(last + 1)) ++last;
    say_thread(block.threads[i]);
    if (last != i) say(" (to t%u)", last);
    i = last;
  }
}

// Tiles that gather, with all of their lanes, then who waits at a barrier, then who runs.
void say_who_waits() {
  uint32_t n_said = 0;
  for (uint32_t b = 0; b < blocks.n; ++b) {
    const Block& block = *blocks[b];
    for (uint32_t log_lanes = 1; log_lanes < 6; ++log_lanes) {
      for (uint32_t first = 0; first < kThreads; first += 1u << log_lanes) {
        if (block.records[log_lanes][first].arrived == 0 || n_said > kMaxSaid) continue;
        say_tile(block, first, 1u << log_lanes);
        n_said += 1u << log_lanes;
      }
    }
    say_others(block, State::kWaiting, &n_said);
    say_others(block, State::kRunnable, &n_said);
  }
  if (n_said > kMaxSaid) say(" and others");
}

[[noreturn]] void fail_with_all(const char* what) {
  say("%s", what);
  say_who_waits();
  abandon();
}

// --- threads and blocks ---

void begin_block(Block* block) {
  block->number = launch.n_begun++;
  block->n_live = kThreads;
  block->n_at_barrier = 0;
  block->next_unstarted = 0;
  block->shared_used = 0;
  for (uint32_t site = 0; site <= n_sites && site < kMaxSites; ++site) block->site_offsets[site] = 0;
  for (uint32_t i = 0; i < kThreads; ++i) {
    Thread& t = block->threads[i];
    t.fiber = nullptr;
    t.state = State::kUnstarted;
    t.is_slow = is_seeded() && random_below(8) == 0;
    if (is_seeded()) runnable.push(&t);
  }
}

Block* new_block() {
  void* const all = mmap(nullptr, sizeof(Block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  Block* const block = static_cast<Block*>(all);  // zeroed
  for (uint32_t i = 0; i < kThreads; ++i) {
    block->threads[i].block = block;
    block->threads[i].index = i;
  }
  return block;
}

Block* add_block() {
  blocks.push(spare_blocks.pop_last());
  return blocks[blocks.n - 1];
}

void end_block(Block* block) {
  if (launch.n_begun == here.n_blocks) return;
  begin_block(kTsan ? add_block() : block);
}

// Makes what a launch may need before any of its fibers runs: what a fiber allocated, ThreadSanitizer would call its
// own.
bool make_room(uint32_t n_blocks) {
  const uint32_t most = is_seeded() ? kMaxResident : 1;
  const uint32_t n_wanted = kTsan || n_blocks < most ? n_blocks : most;
  while (spare_blocks.n < n_wanted) {
    Block* const block = new_block();
    if (block == nullptr) return false;
    spare_blocks.push(block);
  }
  for (; n_fibers < n_wanted * kThreads; ++n_fibers) {
    if (!make(&fibers[n_fibers], n_fibers, &fiber_main)) return false;
    free_fibers.push(&fibers[n_fibers]);
  }
  return true;
}

// --- the scheduler ---

Thread* pick_in_order() {
  Block* const block = blocks[blocks.n - 1];
  const bool has_unstarted = block->next_unstarted < kThreads;
  const bool has_runnable = runnable.n != 0;
  if (has_runnable && !(has_unstarted && launch.prefer_unstarted != 0)) return runnable.pop_first();
  if (!has_unstarted) return nullptr;
  if (launch.prefer_unstarted != 0) --launch.prefer_unstarted;
  return &block->threads[block->next_unstarted++];
}

Thread* pick_by_chance() {
  if (runnable.n == 0) return nullptr;
  uint64_t at = random_below(runnable.n);
  if (runnable[at]->is_slow && random_below(16) != 0) at = random_below(runnable.n);
  Thread* const next = runnable[at];
  Thread* const last = runnable.pop_last();
  if (next != last) runnable[at] = last;
  return next;
}

// The thread to run next; null if all have ended. Ends the launch if some can never go on.
Thread* pick() {
  Thread* const next = is_seeded() ? pick_by_chance() : pick_in_order();
  if (next != nullptr) return next;
  for (uint32_t b = 0; b < blocks.n; ++b)
    if (blocks[b]->n_live != 0) fail_with_all("deadlock:");
  return nullptr;
}

void enter(Thread* next) {
  current = next;
  here.block_thread = next->index;
  here.block_number = next->block->number;
}

// Goes on as another thread; returns when this one's turn comes.
void switch_to(Fiber* from, Thread* next) {
  if (next->fiber == nullptr) next->fiber = free_fibers.pop_last();
  enter(next);
  if (next->fiber != from) switch_fibers(from, next->fiber);
}

void wait(Thread* me) {
  me->state = State::kWaiting;
  switch_to(me->fiber, pick());
}

void wake(Thread* t) {
  t->state = State::kRunnable;
  runnable.push(t);
}

uint64_t next_budget() {
  if (!is_seeded()) return kFastBudget;
  switch (launch.style) {
    case 0:
      return 1;
    case 1:
      return 1 + random_below(4);
    case 2:
      return 1 + random_below(8);
    default:
      return random_below(2) == 0 ? 1 : 1ull << random_below(8);
  }
}

void end_barrier(Block* block) {
  block->n_at_barrier = 0;
  ++block->barrier_generation;
  for (Thread& t : block->threads)
    if (t.state == State::kWaiting && t.at == Meeting::kBarrier) wake(&t);
}

void end_thread(Thread* me) {
  Block* const block = me->block;
  release(&end_tag);
  me->state = State::kEnded;
  launch.steps = 0;
  if (--block->n_live == 0) return end_block(block);
  if (block->n_at_barrier == block->n_live) end_barrier(block);
}

void fiber_main() {
  arrive(nullptr);
  for (;;) {
    Thread* const me = current;
    Fiber* const fiber = me->fiber;
    me->state = State::kRunnable;
    acquire(&launch_tag);
    launch.kernel->run(launch.args);
    end_thread(me);
    Thread* const next = pick();
    if (next != nullptr && next->fiber == nullptr && !kTsan) {  // the stack is free: go on with the next thread here
      next->fiber = fiber;
      enter(next);
      continue;
    }
    (kTsan ? spent_fibers : free_fibers).push(fiber);
    if (next == nullptr)
      switch_fibers(fiber, &main_fiber);
    else
      switch_to(fiber, next);
  }
}

void end_meeting(Block* block, Record* record, uint32_t first, uint32_t n_lanes, const Thread* last) {
  Thread* const lanes = &block->threads[first];
  uint64_t ballot = 0;
  if (record->what == Meeting::kBallot)
    for (uint32_t i = 0; i < n_lanes; ++i) ballot |= lanes[i].value << i;
  for (uint32_t i = 0; i < n_lanes; ++i) {
    lanes[i].result = record->what == Meeting::kShfl ? lanes[lanes[i].from].value : ballot;
    if (&lanes[i] != last) wake(&lanes[i]);
  }
  record->arrived = 0;
  ++record->generation;
}

// --- a launch ---

void forget_all() {
  free_fibers.clear();
  spent_fibers.clear();
  for (uint32_t i = 0; i < n_fibers; ++i) {
    reset(&fibers[i], &fiber_main);
    free_fibers.push(&fibers[i]);
  }
  for (uint32_t b = 0; b < blocks.n; ++b)
    for (auto& row : blocks[b]->records)
      for (Record& record : row) record.arrived = 0;
}

void run_all(uint32_t n_blocks) {
  here.n_blocks = n_blocks;
  uint64_t n_resident = 1;
  if (is_seeded()) {
    launch.style = static_cast<uint32_t>(random_below(4));
    n_resident = 1 + random_below(kMaxResident);
  }
  for (uint64_t i = 0; i < n_resident && i < n_blocks; ++i) begin_block(add_block());
  budget = launch.granted = next_budget();
  become_main(&main_fiber);
  release(&launch_tag);
  switch_to(&main_fiber, pick());
  acquire(&end_tag);
  if (launch.has_failed) forget_all();
  while (spent_fibers.n != 0) free_fibers.push(spent_fibers.pop_last());
  while (blocks.n != 0) spare_blocks.push(blocks.pop_last());
  runnable.clear();
}

const Kernel* find_kernel(const char* name) {
  const Kernel* found = nullptr;
  for (uint32_t i = 0; i < n_kernels && i < kMaxKernels; ++i) {
    if (strcmp(kernels[i].name, name) != 0) continue;
    if (found != nullptr) return say("two kernels are named %s", name), nullptr;
    found = &kernels[i];
  }
  if (found == nullptr) say("no kernel is named %s", name);
  return found;
}

void launch_checked(const char* name, uint32_t n_blocks, const void* args, uint64_t args_bytes, uint64_t seed) {
  const Kernel* const kernel = find_kernel(name);
  if (kernel == nullptr) return;
  if (kernel->args_bytes != args_bytes)
    return say("%s takes %llu bytes of arguments; %llu were given", name,
               static_cast<unsigned long long>(kernel->args_bytes), static_cast<unsigned long long>(args_bytes));
  if (n_blocks == 0) return say("%s: a launch of no blocks", name);
  if (kTsan && n_blocks > kMaxBlocks)
    return say("%s: %u blocks are more threads than ThreadSanitizer knows", name, n_blocks);
  launch = Launch{};
  launch.kernel = kernel;
  launch.args = args;
  launch.seed = launch.random = seed;
  launch.limit = own_limit != 0 ? own_limit : seed != 0 ? kSeededLimit : kFastLimit;
  if (!make_room(n_blocks)) return say("no memory for the fibers and blocks of a launch");
  run_all(n_blocks);
}

}  // namespace

Registration::Registration(const char* name, void (*run)(const void*), uint64_t args_bytes) {
  if (n_kernels < kMaxKernels) kernels[n_kernels++] = Kernel{name, run, args_bytes};
}

void fail(const char* text) {
  say("%s by", text);
  say_thread(*current);
  abandon();
}

void touch_slowly() {
  if (--budget == 0) ask_scheduler();
}

void ask_scheduler() {
  Thread* const me = current;
  launch.steps += launch.granted;
  budget = launch.granted = next_budget();
  if (launch.steps > launch.limit) fail_with_all("livelock: no thread ends:");
  launch.prefer_unstarted = 32;  // whom a spinning thread may wait for
  runnable.push(me);
  Thread* const next = pick();
  if (next == me) return;
  switch_to(me->fiber, next);
}

uint64_t meet(Meeting what, uint32_t log_lanes, uint64_t value, uint32_t from) {
  touch_slowly();
  Thread* const me = current;
  Block* const block = me->block;
  const uint32_t n_lanes = 1u << log_lanes;
  const uint32_t first = me->index & ~(n_lanes - 1);
  Record* const record = &block->records[log_lanes][first];
  if (record->arrived == 0) {
    record->what = what;
  } else if (record->what != what) {
    say("lanes of one tile meet at %s and %s:", kNames[static_cast<uint32_t>(record->what)],
        kNames[static_cast<uint32_t>(what)]);
    me->state = State::kWaiting;
    me->at = what;
    say_tile(*block, first, n_lanes);
    abandon();
  }
  me->value = value;
  me->from = from;
  me->at = what;
  record->arrived |= 1u << (me->index - first);
  uint64_t* const tag = &block->tags[log_lanes][first][record->generation & 1];
  const bool is_ordering = what == Meeting::kSync || !kOnlySyncOrders;
  if (is_ordering) release(tag);
  if (record->arrived == static_cast<uint32_t>((1ull << n_lanes) - 1))
    end_meeting(block, record, first, n_lanes, me);
  else
    wait(me);
  if (is_ordering) acquire(tag);
  return me->result;
}

void meet_block() {
  touch_slowly();
  Thread* const me = current;
  Block* const block = me->block;
  uint64_t* const tag = &block->barrier_tags[block->barrier_generation & 1];
  release(tag);
  me->at = Meeting::kBarrier;
  if (++block->n_at_barrier == block->n_live)
    end_barrier(block);
  else
    wait(me);
  acquire(tag);
}

void* shared(uint32_t* site, uint64_t n_bytes, const char* name) {
  Block* const block = current->block;
  if (*site == 0) {
    if (n_sites + 1 == kMaxSites) fail("more declarations of shared memory than the emulator counts");
    block->site_offsets[*site = ++n_sites] = 0;
    for (uint32_t b = 0; b < blocks.n; ++b) blocks[b]->site_offsets[n_sites] = 0;
  }
  uint32_t* const offset = &block->site_offsets[*site];
  if (*offset == 0) {
    if (block->shared_used + n_bytes > kSharedBytes) {
      say("%s: %llu bytes of shared memory after %u are more than a block has (%u)", name,
          static_cast<unsigned long long>(n_bytes), block->shared_used, kSharedBytes);
      abandon();
    }
    *offset = block->shared_used + 1;
    volatile unsigned char* const bytes = block->shared + block->shared_used;
    for (uint64_t i = 0; i < n_bytes; ++i) bytes[i] = 0xCD;
    block->shared_used += static_cast<uint32_t>((n_bytes + 15) / 16 * 16);
  }
  return block->shared + (*offset - 1);
}

}  // namespace embstore::emulator

using namespace embstore::emulator;  // NOLINT: the C interface to it

// Runs a kernel. Returns 0, or 1 with the text of what went wrong.
EMB_API int emulator_launch(const char* kernel, uint32_t n_blocks, const void* args, uint64_t args_bytes, uint64_t seed,
                            char* error, uint64_t error_bytes) {
  const std::lock_guard<std::mutex> guard(door);
  message[0] = 0;
  launch_checked(kernel, n_blocks, args, args_bytes, seed);
  if (error_bytes != 0) snprintf(error, error_bytes, "%s", message);
  return message[0] != 0;
}

// How many accesses may pass without a thread ending; 0: the default.
EMB_API void emulator_set_limit(uint64_t n_accesses) {
  const std::lock_guard<std::mutex> guard(door);
  own_limit = n_accesses;
}

// Writes lines of "name bytes"; returns how many bytes all of them need, with the 0 at the end.
EMB_API int emulator_kernels(char* out, uint64_t n) {
  uint64_t used = 0;
  for (uint32_t i = 0; i < n_kernels; ++i) {
    const bool has_room = used < n;
    const int more = snprintf(has_room ? out + used : nullptr, has_room ? n - used : 0, "%s %llu\n", kernels[i].name,
                              static_cast<unsigned long long>(kernels[i].args_bytes));
    used += static_cast<uint64_t>(more);
  }
  return static_cast<int>(used + 1);
}
