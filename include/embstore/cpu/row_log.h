// Images of rows, as they were before a writer changed them: in memory up to a bound, beyond that in a file.
//
// 1. put() does not fail its caller: what goes wrong with the file is kept as an errno, and it is the log that is lost.
// 2. A number that put() gave stands for its image until drop().
// Threads of writers put, and the reader of the snapshot reads and drops, at the same time.
#ifndef EMBSTORE_CPU_ROW_LOG_H_
#define EMBSTORE_CPU_ROW_LOG_H_

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <vector>

#include "memory.h"

namespace embstore::cpu {

class RowLog {
 public:
  // `file` is a descriptor of an empty file, or negative: then the memory is all there is.
  RowLog(uint64_t image_bytes, uint64_t most_bytes, int file)
      : image_bytes_(image_bytes), n_memory_(std::min<uint64_t>(most_bytes / image_bytes, kMost)), file_(file) {}

  // Takes the memory, before anything else is called: no more than n_images need.
  void reserve(uint64_t n_images) {
    n_memory_ = std::min(n_memory_, n_images);
    if (n_memory_ > 0) memory_ = Region::allocate(n_memory_ * image_bytes_);
    free_.reserve(n_memory_);
  }

  int error() const { return error_.load(std::memory_order_relaxed); }
  uint64_t memory_bytes() const { return memory_.bytes(); }
  uint64_t n_in_file() const { return next_in_file_.load(std::memory_order_relaxed); }

  void prefault() const { populate_pages(memory_.data(), memory_.bytes()); }

  // Writes n images, of which fill(i, char*) makes number i; their numbers go to `numbers`. False: the log is lost.
  template <class Fill>
  bool put(uint64_t n, const Fill& fill, uint32_t* numbers) noexcept {
    const uint64_t n_held = take(n, numbers);
    for (uint64_t i = 0; i < n_held; ++i) fill(i, memory_.data() + numbers[i] * image_bytes_);
    if (n_held == n) return true;
    return put_in_file(n - n_held, [&](uint64_t i, char* image) { fill(n_held + i, image); }, numbers + n_held);
  }

  // An image; `scratch` (image_bytes) holds it where it was in the file. Null: it cannot be read.
  const char* read(uint32_t number, char* scratch) {
    if (number < n_memory_) return memory_.data() + number * image_bytes_;
    return transfer(pread, scratch, image_bytes_, (number - n_memory_) * image_bytes_) ? scratch : nullptr;
  }

  void drop(const uint32_t* numbers, uint64_t n) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (uint64_t i = 0; i < n; ++i)
      if (numbers[i] < n_memory_) free_.push_back(numbers[i]);
  }

 private:
  static constexpr uint64_t kMost = UINT32_MAX / 2;  // numbers of images in memory, and as many in the file

  uint64_t take(uint64_t n, uint32_t* numbers) {
    std::lock_guard<std::mutex> lock(mutex_);
    uint64_t n_taken = 0;
    while (n_taken < n && !free_.empty()) {
      numbers[n_taken++] = free_.back();
      free_.pop_back();
    }
    while (n_taken < n && next_in_memory_ < n_memory_) numbers[n_taken++] = static_cast<uint32_t>(next_in_memory_++);
    return n_taken;
  }

  template <class Fill>
  bool put_in_file(uint64_t n, const Fill& fill, uint32_t* numbers) noexcept {
    const uint64_t first = next_in_file_.fetch_add(n, std::memory_order_relaxed);
    if (error() != 0) return false;
    if (file_ < 0 || first + n > kMost) return lose(ENOSPC);
    const std::unique_ptr<char[]> images(new (std::nothrow) char[n * image_bytes_]);
    if (images == nullptr) return lose(ENOMEM);
    for (uint64_t i = 0; i < n; ++i) {
      fill(i, images.get() + i * image_bytes_);
      numbers[i] = static_cast<uint32_t>(n_memory_ + first + i);
    }
    return transfer(pwrite, images.get(), n * image_bytes_, first * image_bytes_);
  }

  // All of n_bytes by pread or pwrite.
  template <class Call>
  bool transfer(const Call& call, char* data, uint64_t n_bytes, uint64_t offset) {
    while (n_bytes > 0) {
      const ssize_t n = call(file_, data, n_bytes, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return lose(n < 0 ? errno : EIO);
      data += n;
      offset += static_cast<uint64_t>(n);
      n_bytes -= static_cast<uint64_t>(n);
    }
    return true;
  }

  bool lose(int error) {
    int none = 0;
    error_.compare_exchange_strong(none, error, std::memory_order_relaxed);
    return false;
  }

  const uint64_t image_bytes_;
  uint64_t n_memory_;
  const int file_;
  Region memory_;
  std::mutex mutex_;
  std::vector<uint32_t> free_;
  uint64_t next_in_memory_ = 0;
  std::atomic<uint64_t> next_in_file_{0};
  std::atomic<int> error_{0};
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_ROW_LOG_H_
