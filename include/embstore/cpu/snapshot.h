// What a table held at one moment, the cut, read by a save while writers go on.
//
// 1. Whoever changes a row of the cut that has not been read yet copies it into the log first: protect(). Each row has
//    a word that says who copies it, or where its image is; it is claimed for the copy of one row alone.
// 2. Candidates are collected a range of hashes at a time, and what one was at the cut is noted before it changes;
//    blocks of the bloom filter are kept as they change, until their partition is read.
// 3. Nothing here fails a writer: without memory, or with a full disk, the snapshot is lost, and its reader is told.
// 4. The cut and the calls for writers belong to the table's writer lock; all others to one saving thread.
#ifndef EMBSTORE_CPU_SNAPSHOT_H_
#define EMBSTORE_CPU_SNAPSHOT_H_

#include <array>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "config.h"
#include "gather.h"
#include "order.h"
#include "row_log.h"
#include "transfer.h"

namespace embstore::cpu {

struct Candidate {
  int64_t key;
  uint32_t word;
};

// By (partition, key), the order of files.
inline bool is_before_in_files(int64_t a, int64_t b) {
  const uint32_t pa = partition_of(static_cast<uint64_t>(a));
  const uint32_t pb = partition_of(static_cast<uint64_t>(b));
  return pa != pb ? pa < pb : a < b;
}

class Snapshot {
 public:
  // `number` is the snapshot's among those of its table, from 1.
  Snapshot(uint64_t number, const RowFormat& format, uint64_t log_bytes, int file)
      : number_(number),
        format_(format),
        slots_at_(static_cast<uint32_t>(sizeof(Meta) + round_up(value_bytes(format), 4))),
        image_bytes_(round_up(slots_at_ + format.n_slots * sizeof(float), sizeof(Meta))),
        log_(image_bytes_, log_bytes, file) {}

  // ---- the cut
  void cut(std::shared_ptr<Storage> storage, const es_state& state, ChangeLog* changes, bool is_delta);
  void begin_candidates() { is_collecting_ = true; }
  void take_bloom(const Region& bloom, uint64_t n_blocks);

  // ---- for writers
  uint64_t number() const { return number_; }
  void protect(const uint32_t* rows, uint64_t n);
  void freeze_metas();  // before the steps or frequencies of all rows change
  void freeze_bloom();  // before all of the filter changes
  void keep_block(uint64_t block);
  void note_candidate(uint64_t key, uint32_t word);  // its word before a change; kWordEmpty where there was none
  void detach() { is_detached_ = true; }             // the rows and the index are this snapshot's alone
  bool is_detached() const { return is_detached_; }
  void read_bloom(uint32_t partition, uint8_t* out);
  bool collect_candidates();
  TakenChanges& changes() { return changes_; }

  // ---- for the saving thread
  void prefault() const { log_.prefault(); }
  void prepare(uint32_t n_threads);
  uint64_t count(uint32_t partition) const { return order_.count(partition); }
  void read_rows(uint64_t first, uint64_t n, const RowArrays& out, uint32_t n_threads);
  const std::vector<int64_t>& deleted();
  const std::vector<Candidate>& candidates();
  int error() const { return error_.load(std::memory_order_relaxed) != 0 ? error_.load() : log_.error(); }
  const es_state& state() const { return state_; }
  uint64_t n_rows() const { return n_rows_; }
  uint64_t n_live() const { return n_live_; }
  uint64_t n_in_file() const { return log_.n_in_file(); }
  uint64_t bytes() const {
    return log_.memory_bytes() + (set_.capacity() + changes_.written.capacity()) * 8 + n_rows_ * sizeof(uint32_t) +
           frozen_metas_.bytes() + frozen_bloom_.bytes() + n_kept_blocks_ * sizeof(BlockImage) +
           n_scanned_ * sizeof(Candidate) + noted_.size() * kNotedBytes;
  }

 private:
  // Words of rows: what follows kFirstImage is the number of an image.
  static constexpr uint32_t kUntouched = 0;
  static constexpr uint32_t kBusy = 1;
  static constexpr uint32_t kRead = 2;
  static constexpr uint32_t kMetaFrozen = 3;
  static constexpr uint32_t kFirstImage = 4;
  static constexpr uint64_t kBlock = 64;       // rows that are logged together
  static constexpr uint64_t kNotedBytes = 40;  // about: an entry of noted_, and its bucket

  // The rows of the cut, as ExportOrder wants them.
  struct RowsOfCut {
    const Snapshot& cut;
    uint64_t n_ids() const { return cut.n_ids_; }
    uint64_t n_rows() const { return cut.n_rows_; }
    void prefetch(uint32_t row) const { __builtin_prefetch(cut.rows().meta(row)); }
    uint64_t key(uint32_t row) const { return cut.key_of(row); }
    template <class Visit>
    void for_each(uint64_t first, uint64_t end, const Visit& visit) const {
      for_each_bit(cut.set_.data(), first, end, [&](uint32_t row) { visit(row, cut.key_of(row)); });
    }
  };

  const Rows& rows() const { return storage_->rows; }
  uint32_t* word(uint32_t row) const { return reinterpret_cast<uint32_t*>(words_.data()) + row; }
  bool is_of_cut(uint32_t row) const { return (set_[row / 64] >> (row % 64) & 1) != 0; }
  static bool is_settled(uint32_t word) { return word == kRead || word >= kFirstImage; }
  bool is_over() const { return is_detached_ || is_read_.load(std::memory_order_acquire) || error() != 0; }
  void lose(int error) { error_.store(error, std::memory_order_relaxed); }
  bool claim(uint32_t row, uint32_t* was) const;
  void settle(uint32_t row, uint32_t state) const { __atomic_store_n(word(row), state, __ATOMIC_RELEASE); }
  uint64_t key_of(uint32_t row) const;
  Meta meta_of_cut(uint32_t row, uint32_t was) const;
  void make_image(uint32_t row, uint32_t was, char* image) const;
  void log_rows(const uint32_t* rows, const uint32_t* were, uint64_t n);
  void prefetch(uint32_t row) const;
  void put_row(uint64_t i, const Meta& meta, const char* values, const float* slots, const RowArrays& out) const;
  void read_range(const uint32_t* ids, uint64_t n, const RowArrays& out);

  const uint64_t number_;
  const RowFormat format_;
  const uint32_t slots_at_;  // in an image: a record, values, slots
  const uint64_t image_bytes_;
  std::shared_ptr<Storage> storage_;
  es_state state_ = {};
  uint64_t n_ids_ = 0;
  uint64_t n_rows_ = 0;
  uint64_t n_live_ = 0;
  std::vector<uint64_t> set_;  // a bit for each row of the cut that is to be read
  Region words_;               // (n_ids,) uint32
  RowLog log_;
  Region frozen_metas_;  // (n_ids,) Meta
  TakenChanges changes_;
  bool is_detached_ = false;
  std::atomic<bool> is_read_{false};
  std::atomic<int> error_{0};

  bool is_collecting_ = false;
  uint32_t n_ranges_ = 0;  // of hashes
  uint32_t n_collected_ = 0;
  uint64_t n_scanned_ = 0;  // candidates
  std::vector<Candidate> candidates_;
  std::unordered_map<int64_t, uint32_t> noted_;  // the words at the cut of those that have changed
  bool is_sorted_ = false;                       // candidates_
  bool is_removed_settled_ = false;              // changes_.removed are those of a delta

  struct BlockImage {
    uint64_t block;
    std::array<uint8_t, kBloomBlockBytes> bytes;
  };
  const uint8_t* bloom_ = nullptr;  // the table's, or frozen_bloom_
  uint64_t n_partition_blocks_ = 0;
  uint32_t next_partition_ = kPartitions;  // those before it have been read
  std::vector<uint64_t> is_kept_;          // a bit for each block
  uint64_t n_kept_blocks_ = 0;             // whose images wait in blocks_
  std::array<std::vector<BlockImage>, kPartitions> blocks_;
  Region frozen_bloom_;

  ExportOrder order_;
  uint32_t n_sorted_ = 0;  // partitions
  uint64_t n_read_ = 0;
};

// ---- the cut

// With is_delta the rows that `changes` marks, else all. `changes` begins anew.
inline void Snapshot::cut(std::shared_ptr<Storage> storage, const es_state& state, ChangeLog* changes, bool is_delta) {
  storage_ = std::move(storage);
  state_ = state;
  n_ids_ = rows().n_ids();
  n_live_ = rows().n_live();
  const uint64_t n_words = (n_ids_ + 63) / 64;
  set_.assign(rows().live_bits(), rows().live_bits() + n_words);
  words_ = Region::reserve(std::max<uint64_t>(n_ids_, 1) * sizeof(uint32_t));
  log_.reserve(n_live_);
  changes_ = changes->take(n_ids_);  // the last that may throw
  if (is_delta)
    for (uint64_t w = 0; w < n_words; ++w) set_[w] &= changes_.written[w];
  for (const uint64_t bits : set_) n_rows_ += static_cast<uint64_t>(__builtin_popcountll(bits));
}

inline void Snapshot::take_bloom(const Region& bloom, uint64_t n_blocks) {
  bloom_ = reinterpret_cast<const uint8_t*>(bloom.data());
  n_partition_blocks_ = n_blocks;
  is_kept_.resize((n_blocks * kPartitions + 63) / 64);
  next_partition_ = 0;
}

// ---- rows, from the side of writers

// Whether the caller is the one to copy this row; `was` is what its word said.
inline bool Snapshot::claim(uint32_t row, uint32_t* was) const {
  uint32_t* const word = this->word(row);
  for (uint32_t n_tries = 1;; ++n_tries) {
    *was = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    if (is_settled(*was)) return false;
    if (*was != kBusy && __atomic_compare_exchange_n(word, was, kBusy, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
      return true;
    if (n_tries % 128 == 0) sched_yield();
  }
}

inline Meta Snapshot::meta_of_cut(uint32_t row, uint32_t was) const {
  if (was == kMetaFrozen) return reinterpret_cast<const Meta*>(frozen_metas_.data())[row];
  const Meta* const meta = rows().meta(row);
  return Meta{meta->key, __atomic_load_n(&meta->step, __ATOMIC_RELAXED),
              __atomic_load_n(&meta->freq, __ATOMIC_RELAXED)};
}

inline void Snapshot::make_image(uint32_t row, uint32_t was, char* image) const {
  const Meta meta = meta_of_cut(row, was);
  std::memcpy(image, &meta, sizeof meta);
  std::memcpy(image + sizeof meta, rows().values(row), value_bytes(format_));
  if (format_.n_slots > 0) std::memcpy(image + slots_at_, rows().slots(row), format_.n_slots * sizeof(float));
}

inline void Snapshot::prefetch(uint32_t row) const {
  __builtin_prefetch(rows().meta(row));
  prefetch_row(rows().values(row), value_bytes(format_));
  if (format_.n_slots > 0) prefetch_row(rows().slots(row), format_.n_slots * sizeof(float));
}

// Before rows change; ids that are none of the cut's are passed over, and known by their words the next time.
inline void Snapshot::protect(const uint32_t* rows, uint64_t n) {
  constexpr uint64_t kAhead = 64;
  if (is_over()) return;
  uint32_t claimed[kBlock];
  uint32_t were[kBlock];
  uint64_t n_claimed = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n && rows[i + kAhead] < n_ids_) __builtin_prefetch(word(rows[i + kAhead]), 1);
    if (rows[i] >= n_ids_ || is_settled(__atomic_load_n(word(rows[i]), __ATOMIC_ACQUIRE))) continue;
    if (!is_of_cut(rows[i])) {
      settle(rows[i], kRead);
      continue;
    }
    if (!claim(rows[i], were + n_claimed)) continue;
    prefetch(rows[i]);
    claimed[n_claimed++] = rows[i];
    if (n_claimed < kBlock) continue;
    log_rows(claimed, were, n_claimed);
    n_claimed = 0;
  }
  log_rows(claimed, were, n_claimed);
  __atomic_thread_fence(__ATOMIC_RELEASE);  // who sees a key that is stored from here on sees the words: key_of()
}

inline void Snapshot::log_rows(const uint32_t* rows, const uint32_t* were, uint64_t n) {
  uint32_t numbers[kBlock];
  const bool is_kept = log_.put(n, [&](uint64_t i, char* image) { make_image(rows[i], were[i], image); }, numbers);
  for (uint64_t i = 0; i < n; ++i) settle(rows[i], is_kept ? kFirstImage + numbers[i] : kRead);
}

inline void Snapshot::freeze_metas() {
  if (is_over() || frozen_metas_) return;  // the second time all that is left is frozen
  try {
    frozen_metas_ = Region::reserve(std::max<uint64_t>(n_ids_, 1) * sizeof(Meta));
  } catch (const std::bad_alloc&) {
    return lose(ENOMEM);
  }
  Meta* const metas = reinterpret_cast<Meta*>(frozen_metas_.data());
  for_each_bit(set_.data(), 0, n_ids_, [&](uint32_t row) {
    uint32_t was;
    if (!claim(row, &was)) return;
    metas[row] = meta_of_cut(row, was);
    settle(row, kMetaFrozen);
  });
}

// ---- rows, from the side of the saving thread

// A key changes only after its row was logged: if it was not logged afterwards, what was read before is the cut's.
inline uint64_t Snapshot::key_of(uint32_t row) const {
  const uint64_t key = __atomic_load_n(&rows().meta(row)->key, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  uint32_t state = __atomic_load_n(word(row), __ATOMIC_ACQUIRE);
  while (state == kBusy) {
    sched_yield();
    state = __atomic_load_n(word(row), __ATOMIC_ACQUIRE);
  }
  if (state < kFirstImage) return key;
  std::vector<char> scratch(image_bytes_);
  const char* const image = const_cast<RowLog&>(log_).read(state - kFirstImage, scratch.data());
  return image != nullptr ? reinterpret_cast<const Meta*>(image)->key : key;
}

// The order of the rows.
inline void Snapshot::prepare(uint32_t n_threads) {
  order_.group(RowsOfCut{*this}, n_threads);
  if (n_rows_ == 0) is_read_.store(true, std::memory_order_release);
}

inline void Snapshot::put_row(uint64_t i, const Meta& meta, const char* values, const float* slots,
                              const RowArrays& out) const {
  out.keys[i] = static_cast<int64_t>(meta.key);
  out.freq[i] = meta.freq;
  out.step[i] = state_.step_base + meta.step;
  const uint64_t n_bytes = value_bytes(format_);
  std::memcpy(static_cast<char*>(out.values) + i * n_bytes, values, n_bytes);
  if (format_.n_slots > 0) std::memcpy(out.slots + i * format_.n_slots, slots, format_.n_slots * sizeof(float));
}

// Rows that nobody has logged are copied one by one; the images of the others when no row is claimed.
inline void Snapshot::read_range(const uint32_t* ids, uint64_t n, const RowArrays& out) {
  constexpr uint64_t kAhead = 16;
  std::vector<uint32_t> numbers;
  std::vector<uint64_t> places;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      __builtin_prefetch(word(ids[i + kAhead]), 1);
      prefetch(ids[i + kAhead]);
    }
    uint32_t was;
    if (claim(ids[i], &was)) {
      put_row(i, meta_of_cut(ids[i], was), rows().values(ids[i]), rows().slots(ids[i]), out);
      settle(ids[i], kRead);
    } else if (was >= kFirstImage) {
      numbers.push_back(was - kFirstImage);
      places.push_back(i);
    }
  }
  std::vector<char> scratch(image_bytes_);
  for (uint64_t i = 0; i < numbers.size(); ++i) {
    const char* const image = log_.read(numbers[i], scratch.data());
    if (image == nullptr) return;
    Meta meta;
    std::memcpy(&meta, image, sizeof meta);
    put_row(places[i], meta, image + sizeof meta, reinterpret_cast<const float*>(image + slots_at_), out);
  }
  log_.drop(numbers.data(), numbers.size());
}

// Rows [first, first + n) of the order, each of which can be read once.
inline void Snapshot::read_rows(uint64_t first, uint64_t n, const RowArrays& out, uint32_t n_threads) {
  while (n_sorted_ < kPartitions && order_.offset(n_sorted_) < first + n) {
    order_.sort(RowsOfCut{*this}, n_sorted_, n_sorted_, 1);
    ++n_sorted_;
  }
  const uint32_t n_parts = std::min(n_threads, n_parts_for(n));
  for_ranges(n, std::max(n_parts, 1u), [&](uint32_t, uint64_t begin, uint64_t end) {
    read_range(order_.at(first + begin), end - begin, arrays_from(out, begin, format_));
  });
  n_read_ += n;
  if (n_read_ >= n_rows_) is_read_.store(true, std::memory_order_release);
}

// Keys that were removed since the base and had no row at the cut.
inline const std::vector<int64_t>& Snapshot::deleted() {
  std::vector<int64_t>& removed = changes_.removed;
  if (is_removed_settled_) return removed;
  is_removed_settled_ = true;
  std::sort(removed.begin(), removed.end(), is_before_in_files);
  removed.erase(std::unique(removed.begin(), removed.end()), removed.end());
  if (removed.empty()) return removed;
  std::unordered_set<int64_t> gone(removed.begin(), removed.end());
  RowsOfCut{*this}.for_each(0, n_ids_, [&](uint32_t, uint64_t key) { gone.erase(static_cast<int64_t>(key)); });
  removed.erase(std::remove_if(removed.begin(), removed.end(), [&](int64_t key) { return gone.count(key) == 0; }),
                removed.end());
  return removed;
}

// ---- candidates and the filter

inline void Snapshot::note_candidate(uint64_t key, uint32_t word) {
  if (!is_collecting_ || is_detached_) return;
  try {
    noted_.emplace(static_cast<int64_t>(key), word);  // the first is the cut's
  } catch (const std::bad_alloc&) {
    lose(ENOMEM);
  }
}

// One more range of hashes, under the writer lock; whether there are others.
inline bool Snapshot::collect_candidates() {
  constexpr uint64_t kCellsAtOnce = 1 << 15;
  if (!is_collecting_) return false;
  const Index& index = storage_->index;
  if (n_ranges_ == 0) n_ranges_ = static_cast<uint32_t>(index.n_cells() / kCellsAtOnce + 1);
  const auto hash_from = [&](uint32_t range) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(range) << 64) / n_ranges_);
  };
  const bool is_last = n_collected_ + 1 == n_ranges_;
  const uint64_t last = is_last ? UINT64_MAX : hash_from(n_collected_ + 1) - 1;
  index.scan_candidates(hash_from(n_collected_), last, [&](uint64_t key, uint32_t word) {
    candidates_.push_back(Candidate{static_cast<int64_t>(key), word});
  });
  n_scanned_ = candidates_.size();
  ++n_collected_;
  is_collecting_ = !is_last;
  return !is_last;
}

// What was collected, but for candidates that have changed since the cut: those as they were.
inline const std::vector<Candidate>& Snapshot::candidates() {
  if (is_sorted_) return candidates_;
  is_sorted_ = true;
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [&](const Candidate& candidate) { return noted_.count(candidate.key) != 0; }),
                    candidates_.end());
  for (const auto& [key, word] : noted_)
    if (is_candidate_word(word)) candidates_.push_back(Candidate{key, word});
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return is_before_in_files(a.key, b.key); });
  return candidates_;
}

// Before a block of the filter changes.
inline void Snapshot::keep_block(uint64_t block) {
  if (frozen_bloom_ || next_partition_ >= kPartitions) return;
  const uint64_t partition = block / n_partition_blocks_;
  const uint64_t bit = uint64_t{1} << (block % 64);
  if (partition < next_partition_ || (is_kept_[block / 64] & bit) != 0) return;
  try {
    BlockImage image;
    image.block = block;
    std::memcpy(image.bytes.data(), bloom_ + block * kBloomBlockBytes, kBloomBlockBytes);
    blocks_[partition].push_back(image);
    is_kept_[block / 64] |= bit;
    ++n_kept_blocks_;
  } catch (const std::bad_alloc&) {
    lose(ENOMEM);
  }
}

inline void Snapshot::freeze_bloom() {
  if (frozen_bloom_ || next_partition_ >= kPartitions) return;
  const uint64_t n_bytes = n_partition_blocks_ * kPartitions * kBloomBlockBytes;
  try {
    frozen_bloom_ = Region::allocate(n_bytes);
  } catch (const std::bad_alloc&) {
    return lose(ENOMEM);
  }
  std::memcpy(frozen_bloom_.data(), bloom_, n_bytes);
  bloom_ = reinterpret_cast<const uint8_t*>(frozen_bloom_.data());
}

// Partitions are read in ascending order.
inline void Snapshot::read_bloom(uint32_t partition, uint8_t* out) {
  require(partition == next_partition_, "a snapshot's filter is read partition by partition");
  const uint64_t first = partition * n_partition_blocks_;
  std::memcpy(out, bloom_ + first * kBloomBlockBytes, n_partition_blocks_ * kBloomBlockBytes);
  std::vector<BlockImage>& images = blocks_[partition];
  for (const BlockImage& image : images)
    std::memcpy(out + (image.block - first) * kBloomBlockBytes, image.bytes.data(), kBloomBlockBytes);
  n_kept_blocks_ -= images.size();
  std::vector<BlockImage>().swap(images);
  ++next_partition_;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_SNAPSHOT_H_
