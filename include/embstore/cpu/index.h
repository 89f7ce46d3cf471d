// Keys to row words: 64-byte buckets of five exact keys, probed linearly, grown in place without a cliff.
//
// 1. Probing is probe.h's. The last bucket is never used, so every probe ends.
// 2. Growth moves home buckets in ascending order, some with each batch: homes below `boundary` are in `to`, the others
//    in `from`. What was moved is left behind unchanged and is dead.
// 3. Readers take the view by a seqlock; its number changes with every move, and a reader whose view has changed looks
//    again. A bucket's own control word guards the bucket (shared.h).
// Writers hold the table's writer lock; probe_shared may run on any thread within an epoch.
#ifndef EMBSTORE_CPU_INDEX_H_
#define EMBSTORE_CPU_INDEX_H_

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "memory.h"
#include "probe.h"

namespace embstore::cpu {

class Index {
 public:
  explicit Index(HashSeed seed) : hash_keys_(embstore::hash_keys(seed)) {
    from_ = allocate(kLeastBuckets);
    view_.from = buckets(from_);
    view_.n_from = kLeastBuckets;
    publish();
  }

  uint64_t hash(uint64_t key) const { return keyed_hash(key, hash_keys_); }
  const HashKeys& hash_keys() const { return hash_keys_; }
  uint64_t layout() const { return layout_; }  // changes whenever a key may have moved
  uint64_t n_cells() const { return (view_.to != nullptr ? view_.n_to : view_.n_from) * kCells; }
  uint64_t n_tombstones() const { return n_tombstones_; }
  uint64_t bytes() const { return from_.bytes() + to_.bytes() + graveyard_.bytes(); }
  const View& view() const { return view_; }

  // The number that readers compare, and their copy of the view.
  uint64_t view_version() const { return version_.load(std::memory_order_acquire); }
  View shared_view(uint64_t* version) const;

  // ---- for the writer
  Cell find(uint64_t key, uint64_t hash) const;
  void prefetch(uint64_t hash) const { __builtin_prefetch(home_of(view_, hash)); }
  void prefetch_to_write(uint64_t hash) const { __builtin_prefetch(home_of(view_, hash), 1); }
  // Puts an absent key; there must be room (ensure). Returns its cell.
  Cell insert(uint64_t key, uint64_t hash, uint32_t word);
  void set_word(const Cell& cell, uint32_t word);
  void remove(const Cell& cell);

  // Room for n more keys. May move keys; throws std::bad_alloc and loses nothing.
  void ensure(uint64_t n_new);
  // Moves some more homes if a move is under way: enough for the keys inserted since the last call.
  void continue_move();
  void finish_move() {
    while (view_.to != nullptr) move_homes(view_.n_from);
    graveyard_.collect();
  }
  void prefault() { prefault_pages(from_.data(), from_.bytes()); }
  // Bytes beyond those held now that n_new more keys may take at the peak of the next move. There is always a next one:
  // tombstones make even an index that does not grow move now and then.
  uint64_t growth_bytes(uint64_t n_new) const {
    const bool is_moving = view_.to != nullptr;
    return is_moving && has_room(n_new) ? 0 : bytes_of(target_buckets(n_new));
  }
  // Bytes with n_keys in: the least that may be (just before growth), and right after growth.
  static uint64_t resting_bytes(uint64_t n_keys) { return bytes_of(buckets_at_load(n_keys, 7)); }
  static uint64_t grown_bytes(uint64_t n_keys) { return bytes_of(buckets_at_load(n_keys, 5)); }

  // Calls visit(cell) for each candidate or row cell. No move may be under way.
  template <class Visit>
  void for_each(const Visit& visit) {
    const uint64_t n = view_.n_from + pad_of(view_.n_from);
    for (uint64_t b = 0; b < n; ++b)
      for (uint32_t i = 0; i < kCells; ++i)
        if (view_.from[b].word[i] >= kWordFirstRow) visit(Cell{&view_.from[b], i, view_.from[b].word[i]});
  }

  // Calls visit(key, word) for each candidate whose hash is in [first, last]. A move may be under way: where hashes are
  // told apart, not buckets, a scan in pieces misses nothing that moves between them.
  template <class Visit>
  void scan_candidates(uint64_t first, uint64_t last, const Visit& visit) const {
    const uint64_t boundary = view_.to != nullptr ? view_.boundary : 0;
    scan_array(view_.from, view_.n_from, first, last, [&](uint64_t key, uint64_t hash, uint32_t word) {
      if (bucket_of(hash, view_.n_from) >= boundary) visit(key, word);  // what was moved is dead here
    });
    if (view_.to != nullptr)
      scan_array(view_.to, view_.n_to, first, last, [&](uint64_t key, uint64_t, uint32_t word) { visit(key, word); });
  }

 private:
  static constexpr uint64_t kLeastBuckets = 4;
  static constexpr uint64_t kMoveAtOnce = 4096;   // buckets: smaller indexes move in one go
  static constexpr uint64_t kMovesPerInsert = 3;  // buckets; two would do to be done by load 0.8
  static constexpr uint64_t kPad = 64;

  static uint64_t pad_of(uint64_t n_buckets) { return std::min(n_buckets, kPad) + 1; }
  static Bucket* buckets(const Region& region) { return reinterpret_cast<Bucket*>(region.data()); }
  static uint64_t bytes_of(uint64_t n) { return (n + pad_of(n)) * sizeof(Bucket); }
  static uint64_t buckets_at_load(uint64_t n_keys, uint64_t tenths) {
    return std::max(kLeastBuckets, (n_keys * 10 + kCells * tenths - 1) / (kCells * tenths));
  }
  static Region allocate(uint64_t n) { return Region::allocate(bytes_of(n)); }

  // Grow beyond a load of 0.7 of the cells, to one of 0.5.
  bool has_room(uint64_t n_new) const { return (n_used_ + n_new) * 10 <= n_cells() * 7; }
  uint64_t target_buckets(uint64_t n_new) const {
    const uint64_t n_keys = n_used_ - n_tombstones_ + n_new;
    return buckets_at_load(n_keys, 5);
  }

  template <class Visit>
  void scan_array(const Bucket* buckets, uint64_t n, uint64_t first, uint64_t last, const Visit& visit) const;
  void begin_move(uint64_t n_buckets);
  void move_homes(uint64_t end);
  void move_bucket(const Bucket& bucket, uint64_t first_home, uint64_t end_home);
  void end_move();
  void publish();
  static Cell claim(Bucket* bucket, const Bucket* end, uint64_t key, uint32_t word, bool* was_tombstone);

  const HashKeys hash_keys_;
  Region from_;
  Region to_;
  View view_;            // the writer's own copy
  uint64_t n_used_ = 0;  // cells that are not empty: keys and tombstones
  uint64_t n_tombstones_ = 0;
  uint64_t n_tombstones_to_ = 0;
  uint64_t n_inserted_ = 0;  // since continue_move
  uint64_t layout_ = 1;
  Graveyard graveyard_;

  std::atomic<uint64_t> version_{0};  // odd while the fields below change
  std::atomic<Bucket*> shared_from_{nullptr};
  std::atomic<Bucket*> shared_to_{nullptr};
  std::atomic<uint64_t> shared_n_from_{0};
  std::atomic<uint64_t> shared_n_to_{0};
  std::atomic<uint64_t> shared_boundary_{0};
};

inline View Index::shared_view(uint64_t* version) const {
  for (;;) {
    View view;
    *version = version_.load(std::memory_order_acquire);
    view.from = shared_from_.load(std::memory_order_relaxed);
    view.to = shared_to_.load(std::memory_order_relaxed);
    view.n_from = shared_n_from_.load(std::memory_order_relaxed);
    view.n_to = shared_n_to_.load(std::memory_order_relaxed);
    view.boundary = shared_boundary_.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((*version & 1) == 0 && version_.load(std::memory_order_relaxed) == *version) return view;
  }
}

inline void Index::publish() {
  version_.fetch_add(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  shared_from_.store(view_.from, std::memory_order_relaxed);
  shared_to_.store(view_.to, std::memory_order_relaxed);
  shared_n_from_.store(view_.n_from, std::memory_order_relaxed);
  shared_n_to_.store(view_.n_to, std::memory_order_relaxed);
  shared_boundary_.store(view_.boundary, std::memory_order_relaxed);
  version_.fetch_add(1, std::memory_order_release);
  ++layout_;
}

// The candidates of one bucket array; keys may lie beyond their homes up to the next bucket with an empty cell.
template <class Visit>
void Index::scan_array(const Bucket* buckets, uint64_t n, uint64_t first, uint64_t last, const Visit& visit) const {
  const uint64_t last_home = bucket_of(last, n);
  for (uint64_t b = bucket_of(first, n); b < n + pad_of(n); ++b) {
    const Bucket& bucket = buckets[b];
    for (uint32_t i = 0; i < kCells; ++i) {
      if (!is_candidate_word(bucket.word[i])) continue;
      const uint64_t hash = this->hash(bucket.key[i]);
      if (hash >= first && hash <= last) visit(bucket.key[i], hash, bucket.word[i]);
    }
    if (b >= last_home && has_empty_cell(bucket)) return;
  }
}

inline Cell Index::find(uint64_t key, uint64_t hash) const { return find_cell(home_of(view_, hash), key); }

// The first cell of the probe that is free; null when the pad is used up.
inline Cell Index::claim(Bucket* bucket, const Bucket* end, uint64_t key, uint32_t word, bool* was_tombstone) {
  for (; bucket < end; ++bucket) {
    for (uint32_t i = 0; i < kCells; ++i) {
      if (bucket->word[i] >= kWordFirstRow) continue;
      *was_tombstone = bucket->word[i] == kWordTombstone;
      begin_write(&bucket->control);
      store_shared(&bucket->key[i], key);
      store_shared(&bucket->word[i], word);
      end_write(&bucket->control);
      return Cell{bucket, i, word};
    }
  }
  return Cell{};
}

inline Cell Index::insert(uint64_t key, uint64_t hash, uint32_t word) {
  for (;;) {
    Bucket* const home = home_of(view_, hash);
    const bool is_in_to = view_.to != nullptr && home >= view_.to && home < view_.to + view_.n_to;
    Bucket* const base = is_in_to ? view_.to : view_.from;
    const uint64_t n = is_in_to ? view_.n_to : view_.n_from;
    bool was_tombstone = false;
    const Cell cell = claim(home, base + n + pad_of(n) - 1, key, word, &was_tombstone);
    if (cell.bucket != nullptr) {
      n_used_ += !was_tombstone;
      n_tombstones_ -= was_tombstone;
      n_tombstones_to_ -= was_tombstone && is_in_to;
      ++n_inserted_;
      return cell;
    }
    finish_move();  // the pad is full, which no hash that keeps its seed secret lets happen
    begin_move(view_.n_from * 2);
    finish_move();
  }
}

inline void Index::set_word(const Cell& cell, uint32_t word) {
  begin_write(&cell.bucket->control);
  store_shared(&cell.bucket->word[cell.slot], word);
  end_write(&cell.bucket->control);
}

// A cell may become empty again only where no probe ever passed: where its bucket has another empty cell.
inline void Index::remove(const Cell& cell) {
  const bool has_empty = has_empty_cell(*cell.bucket);
  set_word(cell, has_empty ? kWordEmpty : kWordTombstone);
  if (has_empty) {
    --n_used_;
  } else {
    ++n_tombstones_;
    n_tombstones_to_ += view_.to != nullptr && cell.bucket >= view_.to && cell.bucket < view_.to + view_.n_to;
  }
}

inline void Index::ensure(uint64_t n_new) {
  if (view_.to != nullptr && (n_used_ + n_new) * 20 > view_.n_from * kCells * 17) finish_move();
  if (has_room(n_new)) return;
  finish_move();
  if (has_room(n_new)) return;
  const bool is_gradual = view_.n_from > kMoveAtOnce && (n_used_ + n_new) * 40 <= view_.n_from * kCells * 29;
  begin_move(target_buckets(n_new));
  if (!is_gradual) finish_move();
}

inline void Index::continue_move() {
  const uint64_t n = n_inserted_ * kMovesPerInsert;
  n_inserted_ = 0;
  graveyard_.collect();
  if (view_.to == nullptr || n == 0) return;
  move_homes(std::min(view_.n_from, view_.boundary + n));
}

inline void Index::begin_move(uint64_t n_buckets) {
  graveyard_.reserve_one();
  to_ = allocate(n_buckets);
  view_.to = buckets(to_);
  view_.n_to = n_buckets;
  view_.boundary = 0;
  n_tombstones_to_ = 0;
  publish();
}

// Moves the keys at home in [boundary, end), which may lie beyond it up to the next empty cell.
inline void Index::move_homes(uint64_t end) {
  const uint64_t first = view_.boundary;
  const uint64_t n_all = view_.n_from + pad_of(view_.n_from);
  for (uint64_t b = first; b < n_all; ++b) {
    const Bucket& bucket = view_.from[b];
    move_bucket(bucket, first, end);
    if (b + 1 >= end && has_empty_cell(bucket)) break;
  }
  view_.boundary = end;
  publish();
  if (end == view_.n_from) end_move();
}

inline void Index::move_bucket(const Bucket& bucket, uint64_t first_home, uint64_t end_home) {
  for (uint32_t i = 0; i < kCells; ++i) {
    if (bucket.word[i] < kWordFirstRow) continue;
    const uint64_t hash = this->hash(bucket.key[i]);
    const uint64_t home = bucket_of(hash, view_.n_from);
    if (home < first_home || home >= end_home) continue;
    bool was_tombstone = false;
    const Bucket* const end = view_.to + view_.n_to + pad_of(view_.n_to) - 1;
    const Cell moved =
        claim(view_.to + bucket_of(hash, view_.n_to), end, bucket.key[i], bucket.word[i], &was_tombstone);
    if (moved.bucket == nullptr) throw std::runtime_error("the index overflowed: hash_seed is known to an attacker");
    n_tombstones_to_ -= was_tombstone;
    n_tombstones_ -= was_tombstone;
    n_used_ -= was_tombstone;
  }
}

inline void Index::end_move() {
  auto old = std::make_shared<Region>();
  n_used_ -= n_tombstones_ - n_tombstones_to_;
  n_tombstones_ = n_tombstones_to_;
  n_tombstones_to_ = 0;
  *old = std::move(from_);
  from_ = std::move(to_);
  to_ = Region();
  view_ = View{buckets(from_), nullptr, view_.n_to, 0, 0};
  publish();
  const uint64_t n_bytes = old->bytes();
  graveyard_.bury(std::move(old), n_bytes);
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_INDEX_H_
