// The threads of the CPU engine: one pool a process, which runs the parts of one job at a time.
//
// 1. run() returns when all parts are done; the caller works too. If the pool is busy, or the caller is a part of its
// job,
//    the caller does all parts alone.
// 2. Which thread runs which part never changes a result.
// 3. Workers spin for at most 50 us, then sleep. They start at the first job, and again at the first job after a fork.
// Any thread may call run(); a part must not throw.
#ifndef EMBSTORE_CPU_THREAD_POOL_H_
#define EMBSTORE_CPU_THREAD_POOL_H_

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

namespace embstore::cpu {

class ThreadPool {
 public:
  static constexpr int kMostThreads = 1024;

  static ThreadPool& instance() {
    static ThreadPool* pool = new ThreadPool();  // never destroyed: workers may outlive static destructors
    return *pool;
  }

  int n_threads() const { return n_threads_.load(std::memory_order_relaxed); }

  // Takes effect at the next job. n is at least 1.
  void set_n_threads(int n) {
    std::lock_guard<std::mutex> job(job_mutex_);
    n_threads_.store(n, std::memory_order_relaxed);
  }

  template <class Part>
  void run(uint32_t n_parts, const Part& part) {
    const int n_threads = this->n_threads();
    if (n_parts <= 1 || n_threads <= 1 || is_inside() || !job_mutex_.try_lock()) {
      for (uint32_t i = 0; i < n_parts; ++i) part(i);
      return;
    }
    std::lock_guard<std::mutex> job(job_mutex_, std::adopt_lock);
    start_workers(n_threads - 1);
    publish([](const void* context, uint32_t i) { (*static_cast<const Part*>(context))(i); }, &part, n_parts);
    work_on(current_);
    while (n_done_.load(std::memory_order_acquire) < n_parts) relax();
    close_job();
  }

  // How many times this process was forked from the one that loaded the library; a table remembers its own.
  static int fork_generation() { return generation().load(std::memory_order_relaxed); }

 private:
  using Call = void (*)(const void*, uint32_t);
  struct Job {
    Call call = nullptr;
    const void* context = nullptr;
    uint32_t n_parts = 0;
  };

  ThreadPool() : n_threads_(configured_threads()) { pthread_atfork(nullptr, nullptr, &ThreadPool::after_fork); }

  static std::atomic<int>& generation() {
    static std::atomic<int> count{0};
    return count;
  }

  // Whether this thread runs a part of a job.
  static bool& is_inside() {
    static thread_local bool is = false;
    return is;
  }

  static int configured_threads() {
    const char* text = std::getenv("EMBSTORE_NUM_THREADS");
    const int wanted = text != nullptr ? std::atoi(text) : 0;
    if (wanted > 0) return std::min(wanted, kMostThreads);
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    return 1;
  }

  // The child has none of the workers, and its locks may be held by threads that are gone: begin anew.
  static void after_fork() {
    generation().fetch_add(1, std::memory_order_relaxed);
    ThreadPool& pool = instance();
    new (&pool.job_mutex_) std::mutex();
    new (&pool.sleep_mutex_) std::mutex();
    new (&pool.wake_) std::condition_variable();
    pool.n_workers_ = 0;
    pool.n_inside_.store(0, std::memory_order_relaxed);
    pool.is_open_.store(false, std::memory_order_relaxed);
  }

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  void start_workers(int wanted) {
    for (; n_workers_ < wanted; ++n_workers_) {
      try {
        std::thread(&ThreadPool::worker, this, n_workers_).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: those that run are enough to be correct
      }
    }
  }

  void publish(Call call, const void* context, uint32_t n_parts) {
    current_.call = call;
    current_.context = context;
    current_.n_parts = n_parts;
    next_.store(0, std::memory_order_relaxed);
    n_done_.store(0, std::memory_order_relaxed);
    is_open_.store(true, std::memory_order_seq_cst);
    serial_.fetch_add(1, std::memory_order_seq_cst);
    if (n_sleeping_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      wake_.notify_all();
    }
  }

  // No worker may still be about to take a part when the next job's fields are written.
  void close_job() {
    is_open_.store(false, std::memory_order_seq_cst);
    while (n_inside_.load(std::memory_order_seq_cst) > 0) relax();
  }

  void work_on(const Job& job) {
    for (;;) {
      const uint32_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= job.n_parts) return;
      is_inside() = true;
      job.call(job.context, i);
      is_inside() = false;
      n_done_.fetch_add(1, std::memory_order_release);
    }
  }

  void worker(int index) {
    uint64_t seen = 0;
    for (;;) {
      await_job(seen);
      seen = serial_.load(std::memory_order_seq_cst);
      if (index >= n_threads() - 1) continue;  // more workers than asked for today
      n_inside_.fetch_add(1, std::memory_order_seq_cst);
      if (is_open_.load(std::memory_order_seq_cst)) work_on(current_);
      n_inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  void await_job(uint64_t seen) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (std::chrono::steady_clock::now() < give_up) {
      if (serial_.load(std::memory_order_seq_cst) != seen) return;
      relax();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    n_sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return serial_.load(std::memory_order_seq_cst) != seen; });
    n_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

  std::atomic<int> n_threads_;
  std::mutex job_mutex_;  // held for the length of a job
  int n_workers_ = 0;     // guarded by job_mutex_
  Job current_;           // written while no worker is inside
  std::atomic<uint32_t> next_{0};
  std::atomic<uint32_t> n_done_{0};
  std::atomic<bool> is_open_{false};
  std::atomic<int> n_inside_{0};
  std::atomic<uint64_t> serial_{0};
  std::atomic<int> n_sleeping_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_THREAD_POOL_H_
