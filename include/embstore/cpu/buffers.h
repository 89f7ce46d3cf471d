// Memory for the outputs of calls: blocks that went back wait here for the next call, their pages still there.
//
// 1. What waits is at most limit_bytes; beyond it the oldest goes back to the system. A limit of 0 keeps nothing.
// 2. A block is of a size class, four of them from each power of two to the next: at most a quarter more than asked.
// 3. A block holds whatever was in it. It begins at a 2 MiB boundary where it is that long, and asks for huge pages.
// 4. take() throws std::bad_alloc and changes nothing; give() cannot fail.
// Any thread may call anything. After a fork the child has the blocks, and the lock is free.
#ifndef EMBSTORE_CPU_BUFFERS_H_
#define EMBSTORE_CPU_BUFFERS_H_

#include <pthread.h>

#include <cstdlib>
#include <list>
#include <mutex>

#include "config.h"
#include "memory.h"

namespace embstore::cpu {

constexpr uint64_t kLeastBuffer = 1ull << 20;

// The length of the block that n_bytes get.
inline uint64_t buffer_class(uint64_t n_bytes) {
  uint64_t power = kLeastBuffer;
  while (power <= n_bytes / 2) power *= 2;
  return n_bytes <= power ? power : round_up(n_bytes, power / 4);
}

class Buffers;

class Buffer {
 public:
  explicit Buffer(uint64_t n_bytes) : bytes_(n_bytes), region_(Region::allocate(n_bytes)) {
    // The end of a region's last huge page lies beyond the block: it is not to be touched with it.
    const uint64_t whole = bytes_ / kHugePage * kHugePage;
    if (whole < region_.bytes()) madvise(region_.data() + whole, region_.bytes() - whole, MADV_NOHUGEPAGE);
  }
  void* data() const { return region_.data(); }
  uint64_t bytes() const { return bytes_; }

 private:
  friend class Buffers;
  uint64_t bytes_;
  Region region_;
  std::list<Buffer>::iterator place_;
};

class Buffers {
 public:
  static Buffers& instance() {
    static Buffers* buffers = new Buffers();  // never destroyed: arrays may die at exit
    return *buffers;
  }

  Buffer* take(uint64_t n_bytes) {
    const uint64_t block_bytes = buffer_class(n_bytes);
    if (Buffer* kept = take_kept(block_bytes)) return kept;
    std::list<Buffer> fresh;
    fresh.emplace_back(block_bytes);
    fresh.front().place_ = fresh.begin();
    std::lock_guard<std::mutex> lock(mutex_);
    taken_.splice(taken_.end(), fresh);
    return note_taken(taken_.back());
  }

  void give(Buffer* buffer) noexcept {
    std::list<Buffer> dropped;
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.used_bytes -= buffer->bytes_;
    if (buffer->bytes_ > stats_.limit_bytes) return dropped.splice(dropped.end(), taken_, buffer->place_);
    kept_.splice(kept_.end(), taken_, buffer->place_);
    stats_.kept_bytes += buffer->bytes_;
    while (stats_.kept_bytes > stats_.limit_bytes) {
      stats_.kept_bytes -= kept_.front().bytes_;
      dropped.splice(dropped.end(), kept_, kept_.begin());
    }
  }

  // Gives all that waits back to the system.
  void release() {
    std::list<Buffer> dropped;
    std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(kept_);
    stats_.kept_bytes = 0;
  }

  es_buffer_stats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

 private:
  Buffers() {
    stats_.struct_size = sizeof stats_;
    stats_.limit_bytes = configured_limit();
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { new (&instance().mutex_) std::mutex(); });
  }

  static uint64_t configured_limit() {
    const char* text = std::getenv("EMBSTORE_BUFFER_BYTES");
    if (text == nullptr || *text == '\0') return 256ull << 20;
    char* end = nullptr;
    const uint64_t n_bytes = std::strtoull(text, &end, 10);
    require(*text >= '0' && *text <= '9' && *end == '\0', "EMBSTORE_BUFFER_BYTES must be a whole number of bytes");
    return n_bytes;
  }

  // The block that came last has most of its lines in the caches.
  Buffer* take_kept(uint64_t block_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto kept = kept_.end(); kept != kept_.begin();) {
      if ((--kept)->bytes_ != block_bytes) continue;
      taken_.splice(taken_.end(), kept_, kept);
      stats_.kept_bytes -= block_bytes;
      ++stats_.n_reused;
      return note_taken(taken_.back());
    }
    return nullptr;
  }

  Buffer* note_taken(Buffer& buffer) {
    stats_.used_bytes += buffer.bytes_;
    ++stats_.n_taken;
    return &buffer;
  }

  std::mutex mutex_;
  std::list<Buffer> kept_;  // the oldest first
  std::list<Buffer> taken_;
  es_buffer_stats stats_ = {};
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_BUFFERS_H_
