// Memory of the CPU engine: zeroed regions, counted to the byte, and their reclamation behind lock-free readers.
//
// 1. A Region is zeroed, 64-byte aligned, and freed by its owner; 2 MiB pages are asked for from kHugeFrom bytes on.
// 2. A failed allocation throws std::bad_alloc and changes nothing.
// 3. What readers may still see is retired, and freed once every reader that could see it has left (epochs).
// Regions belong to one thread at a time; Epochs may be used from any.
#ifndef EMBSTORE_CPU_MEMORY_H_
#define EMBSTORE_CPU_MEMORY_H_

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace embstore::cpu {

constexpr uint64_t kHugePage = 2ull << 20;
constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kMapFrom = 64ull << 10;

inline uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

// Takes the pages of [first, first + n_bytes) from the system now; what they hold stays, also under readers' eyes.
inline void prefault_pages(char* first, uint64_t n_bytes) {
  for (uint64_t at = 0; at < n_bytes; at += kSmallPage) __atomic_fetch_or(first + at, 0, __ATOMIC_RELAXED);
  if (n_bytes > 0) __atomic_fetch_or(first + n_bytes - 1, 0, __ATOMIC_RELAXED);
}

// The same by the system itself, beside threads that write there; where it cannot, pages come as they are touched.
inline void populate_pages(char* first, uint64_t n_bytes) {
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14
#endif
  if (n_bytes >= kMapFrom) madvise(first, n_bytes, MADV_POPULATE_WRITE);
}

class Region {
 public:
  Region() = default;
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    Region gone(std::move(other));
    swap(gone);
    return *this;
  }
  ~Region() {
    if (base_ == nullptr) return;
    if (map_ != nullptr)
      munmap(map_, map_bytes_);
    else
      std::free(base_);
  }

  // n_bytes of zeros. Pages of a mapped region are taken from the system when they are first touched.
  static Region allocate(uint64_t n_bytes) { return n_bytes < kMapFrom ? from_heap(n_bytes) : from_system(n_bytes); }

  // Address space without memory: pages come as they are touched, and are not asked to be huge.
  static Region reserve(uint64_t n_bytes) {
    Region region;
    void* map = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    madvise(map, n_bytes, MADV_NOHUGEPAGE);
    region.base_ = region.map_ = static_cast<char*>(map);
    region.bytes_ = region.map_bytes_ = n_bytes;
    return region;
  }

  char* data() const { return base_; }
  uint64_t bytes() const { return bytes_; }
  explicit operator bool() const { return base_ != nullptr; }

 private:
  void swap(Region& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    std::swap(map_, other.map_);
    std::swap(map_bytes_, other.map_bytes_);
  }

  static Region from_heap(uint64_t n_bytes) {
    Region region;
    const uint64_t bytes = round_up(n_bytes == 0 ? 1 : n_bytes, 64);
    region.base_ = static_cast<char*>(std::aligned_alloc(64, bytes));
    if (region.base_ == nullptr) throw std::bad_alloc();
    std::memset(region.base_, 0, bytes);
    region.bytes_ = bytes;
    return region;
  }

  // Mapped a huge page longer than asked, so that a huge page boundary lies at its base; the surplus is given back.
  static Region from_system(uint64_t n_bytes) {
    const bool is_huge = n_bytes >= kHugePage;
    const uint64_t unit = is_huge ? kHugePage : kSmallPage;
    const uint64_t bytes = round_up(n_bytes, unit);
    const uint64_t map_bytes = is_huge ? bytes + kHugePage : bytes;
    void* map = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    char* const start = static_cast<char*>(map);
    char* const base = reinterpret_cast<char*>(round_up(reinterpret_cast<uint64_t>(start), unit));
    if (base > start) munmap(start, static_cast<uint64_t>(base - start));
    if (start + map_bytes > base + bytes) munmap(base + bytes, static_cast<uint64_t>(start + map_bytes - base) - bytes);
    if (is_huge) madvise(base, bytes, MADV_HUGEPAGE);  // a wish: small pages are correct too
    Region region;
    region.base_ = region.map_ = base;
    region.bytes_ = region.map_bytes_ = bytes;
    return region;
  }

  char* base_ = nullptr;
  uint64_t bytes_ = 0;
  char* map_ = nullptr;
  uint64_t map_bytes_ = 0;
};

// An array that is kept from call to call: resize() keeps no elements and sets none.
template <class T>
class Scratch {
 public:
  T* resize(uint64_t n) {
    if (n > capacity_) {
      const uint64_t roomy = std::max(n, capacity_ + capacity_ / 2);
      region_ = Region();
      capacity_ = 0;
      region_ = Region::allocate(roomy * sizeof(T));
      capacity_ = roomy;
    }
    size_ = n;
    return data();
  }
  T* data() { return reinterpret_cast<T*>(region_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(region_.data()); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](uint64_t i) { return data()[i]; }
  const T& operator[](uint64_t i) const { return data()[i]; }
  uint64_t size() const { return size_; }
  uint64_t bytes() const { return region_.bytes(); }
  void truncate(uint64_t n) { size_ = n; }

 private:
  Region region_;
  uint64_t capacity_ = 0;
  uint64_t size_ = 0;
};

// Epoch-based reclamation (Fraser 2004). A reader announces the epoch it entered in; what is retired later than the
// oldest announced epoch must wait.
class Epochs {
 public:
  static Epochs& instance() {
    static Epochs* epochs = new Epochs();  // never destroyed: readers may run at exit
    return *epochs;
  }

  class Reader {
   public:
    Reader() : slot_(Epochs::instance().enter()) {}
    ~Reader() { slot_->store(0, std::memory_order_release); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    std::atomic<uint64_t>* slot_;
  };

  // The epoch that something unpublished just now must outlive.
  uint64_t retire() { return now_.fetch_add(1, std::memory_order_seq_cst); }

  // Whether every reader that entered in or before this epoch has left.
  bool has_passed(uint64_t epoch) const {
    for (const Slot& slot : slots_) {
      const uint64_t entered = slot.epoch.load(std::memory_order_seq_cst);
      if (entered != 0 && entered <= epoch) return false;
    }
    return true;
  }

  // In a forked child no other thread lives on; their announcements would hold memory for ever.
  void forget_readers() {
    for (Slot& slot : slots_) slot.epoch.store(0, std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kSlots = 256;
  struct alignas(64) Slot {
    std::atomic<uint64_t> epoch{0};
  };

  std::atomic<uint64_t>* enter() {
    static std::atomic<uint32_t> n_readers{0};
    thread_local const uint32_t first = n_readers.fetch_add(1, std::memory_order_relaxed);
    for (uint32_t i = first;; ++i) {
      Slot& slot = slots_[i % kSlots];
      uint64_t empty = 0;
      if (slot.epoch.compare_exchange_strong(empty, now_.load(std::memory_order_seq_cst), std::memory_order_seq_cst))
        return &slot.epoch;
      if (i - first >= kSlots) std::this_thread::yield();
    }
  }

  std::atomic<uint64_t> now_{1};
  Slot slots_[kSlots];
};

// What waits for readers to leave; belongs to one writer.
class Graveyard {
 public:
  // Call before anything is unpublished: bury() cannot fail after it.
  void reserve_one() { graves_.reserve(graves_.size() + 1); }
  void bury(std::shared_ptr<void> thing, uint64_t n_bytes) {
    collect();
    graves_.push_back(Grave{Epochs::instance().retire(), n_bytes, std::move(thing)});
  }
  void collect() {
    while (!graves_.empty() && Epochs::instance().has_passed(graves_.front().epoch)) graves_.erase(graves_.begin());
  }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const Grave& grave : graves_) sum += grave.n_bytes;
    return sum;
  }

 private:
  struct Grave {
    uint64_t epoch;
    uint64_t n_bytes;
    std::shared_ptr<void> thing;
  };
  std::vector<Grave> graves_;
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_MEMORY_H_
