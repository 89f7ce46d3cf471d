// The CPU table: every verb of docs/semantics.md over index, rows, filter and log.
//
// 1. A writer verb plans first (it may throw, and has changed nothing but capacity), then commits (it cannot fail).
// 2. Writers queue on one mutex. Readers take no lock: they work within an epoch, on versions (gather.h).
// 3. write_count_ is odd while a commit runs.
// 4. Values, statuses and reports do not depend on threads, hash seed or instruction set.
// The verbs that write are defined in insert.h (births), apply.h (gradients, assign) and remove.h (evict, erase).
#ifndef EMBSTORE_CPU_TABLE_H_
#define EMBSTORE_CPU_TABLE_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "config.h"
#include "evict.h"
#include "gather.h"
#include "order.h"
#include "parts.h"
#include "pooled_find.h"
#include "pooling.h"
#include "snapshot.h"
#include "thread_pool.h"
#include "ticket.h"
#include "transfer.h"
#include "update.h"

namespace embstore::cpu {

struct ImportArgs {  // slots, freq and step may be null
  const void* values;
  const float* slots;
  const uint32_t* freq;
  const int64_t* step;
};

class Table {
 public:
  Table(const es_config& config, const Kernels& kernels);

  // ---- readers, on any thread
  uint64_t find(const int64_t* keys, uint64_t n, void* rows, Dtype row_dtype, es_missing missing, uint8_t* found,
                uint32_t* freq, int64_t* step) const;
  void find_part(const es_part& part, es_missing missing) const;
  uint64_t size() const { return n_live_.load(std::memory_order_relaxed); }
  const Config& config() const { return config_; }

  // ---- writers
  HeldTicket find_or_insert(const Parts& parts, int64_t step, bool admit_always);
  // Without a ticket by the parts' keys; the parts' rows are gradients.
  es_apply_report apply(const Parts& parts, Ticket* ticket, int64_t step, double lr);
  es_assign_report assign(const int64_t* keys, uint64_t n, const float* values, es_assign_mode mode, int64_t step);
  void import(const int64_t* keys, uint64_t n, const void* values, const float* slots, const uint32_t* freq,
              const int64_t* step);
  void import_candidates(const int64_t* keys, uint64_t n, const uint32_t* counts, const int64_t* epochs);
  uint64_t erase(const int64_t* keys, uint64_t n);
  es_evict_report evict(const es_evict_args& args);
  void clear();
  void reserve(uint64_t n_rows);
  void set_pins(const int64_t* keys, uint64_t n);
  void set_state(const es_state& state);
  void set_restoring(bool is_restoring);
  void bloom_write(uint32_t partition, const uint8_t* in);

  // ---- looking at the whole, under the writer lock
  es_state state();
  es_stats stats();
  void partition_counts(bool candidates, uint64_t* counts);
  uint64_t export_rows(uint32_t first, uint32_t last, uint64_t capacity, const RowArrays& out);
  uint64_t export_candidates(uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys, uint32_t* counts,
                             int64_t* epochs);
  void bloom_read(uint32_t partition, uint8_t* out);
  uint64_t evicted_count();
  void evicted_take(uint64_t capacity, const RowArrays& out);
  void changes(std::vector<int64_t>* upserted, std::vector<int64_t>* deleted);
  void changes_reset();

  // ---- a save beside writers: one snapshot at a time
  std::shared_ptr<Snapshot> snapshot_begin(bool is_delta, uint64_t log_bytes, int file);
  void snapshot_candidates(Snapshot& snapshot);
  void snapshot_bloom(Snapshot& snapshot, uint32_t partition, uint8_t* out);
  void snapshot_end(Snapshot& snapshot, bool is_saved);

  static es_plan_report plan(const es_config& config, uint64_t n_rows, uint64_t n_candidates);

 private:
  struct Room {  // what a batch's new keys need
    uint64_t n_rows = 0;
    uint64_t n_cells = 0;
    std::vector<Victim> victims;
  };

  // Holds the writer lock; refuses in a forked child.
  class Writer {
   public:
    explicit Writer(Table& table) : lock_(lock(table)) {}

   private:
    static std::unique_lock<std::mutex> lock(Table& table) {
      if (table.fork_generation_ != ThreadPool::fork_generation())
        throw Error(ES_FORKED, "the table was made before a fork: the child may read it, but not write");
      return std::unique_lock<std::mutex>(table.writer_mutex_);
    }
    std::unique_lock<std::mutex> lock_;
  };

  class Commit {
   public:
    explicit Commit(Table& table) : table_(table) { table_.write_count_.fetch_add(1, std::memory_order_seq_cst); }
    ~Commit() {
      table_.n_live_.store(table_.storage_->rows.n_live(), std::memory_order_relaxed);
      table_.write_count_.fetch_add(1, std::memory_order_release);
    }

   private:
    Table& table_;
  };

  Index& index() { return storage_->index; }
  Rows& rows() { return storage_->rows; }
  const RowFormat& format() const { return config_.format; }
  void protect(Ticket& ticket);
  void note_candidate(uint64_t key, uint32_t word);
  BirthContext birth_context() const;

  // insert.h
  void maintain(int64_t step);
  void expire_candidates(int64_t step);
  void halve_bloom();
  void halve_frequencies();
  void advance_base(int64_t step);
  int64_t clamped(int64_t step);
  uint32_t relative(int64_t step) const;
  HeldTicket new_ticket();
  void look_up(const JoinedKeys& joined, uint32_t n_parts, Ticket* ticket);
  void probe_again(const Ticket& ticket);
  void note_found(Ticket& ticket, es_key_status absent);
  void decide(Ticket& ticket, bool admit_always);
  uint32_t count_before(uint64_t unique) const;
  Room make_room(Ticket& ticket);
  uint64_t row_limit(const Ticket& ticket);
  uint64_t fitting_prefix(const Ticket& ticket, uint64_t n_victims) const;
  uint64_t bytes_with(uint64_t n_rows, uint64_t n_cells, uint64_t n_victims) const;
  uint64_t own_bytes() const;
  bool is_bounded() const { return config_.c.max_bytes != 0 && !is_restoring_; }
  uint64_t scratch_bytes() const;
  bool needs_cell(const Ticket& ticket, uint64_t unique) const;
  void refuse_rows_beyond(Ticket& ticket, uint64_t limit);
  void refuse_from(Ticket& ticket, uint64_t first);
  Room count_needs(const Ticket& ticket) const;
  std::vector<Victim> choose_victims(const Ticket& ticket, uint64_t target) const;
  void reserve_for(Ticket& ticket, const Room& room);
  void reserve_pooling(const Parts& parts);
  void commit_insert(Ticket& ticket, const Room& room, int64_t step);
  void touch_hits(const Ticket& ticket);
  void make_rows(Ticket& ticket, uint32_t step);
  void publish_rows(const Ticket& ticket);
  void count_pending(const Ticket& ticket);
  void gather_part(const Ticket& ticket, uint64_t first, const es_part& part);

  // apply.h
  void check_ticket(const Ticket& ticket) const;
  void forget_counts(const Ticket& ticket);
  void list_wanted(Ticket& ticket, uint32_t number, const DistinctPart& part, es_apply_report* report);
  uint32_t row_now(uint32_t row, uint64_t key);
  void resolve(Ticket& ticket, es_apply_report* report);
  void filter_nonfinite(const Ticket& ticket, es_apply_report* report);
  es_apply_report apply_locked(Ticket& ticket, const GradientView& grads, int64_t step, double lr);
  void note_train_step(int64_t step);
  void import_row(uint32_t row, bool is_new, uint64_t i, const ImportArgs& args);
  UpdateContext update_context(const Ticket& ticket, const float* const* vectors, int64_t step);
  void log_written(const Ticket& ticket);
  const float* const* assigned_values(Ticket& ticket, const float* values, es_assign_mode mode);
  bool all_assigned_finite(const Distinct& distinct, const float* const* results) const;
  template <class IsWanted>
  void want(const Distinct& distinct, const IsWanted& is_wanted);

  // remove.h
  void remove_victims(const std::vector<Victim>& victims);
  void plan_removal(const std::vector<Victim>& victims, bool is_collected);
  uint64_t spare(const Pins& pins);
  void keep_oldest(uint64_t n);
  uint64_t remove_selected(uint64_t n, const Deadline& deadline, bool is_dry_run, bool is_collected,
                           es_evict_report* report);
  es_evict_report evict_locked(const std::vector<Predicate>& program, const es_evict_args& args);

  const Config config_;
  const Kernels& kernels_;
  const uint64_t id_;
  const int fork_generation_;
  std::vector<char> default_row_;  // in the table's dtype
  std::shared_ptr<Storage> storage_;
  std::atomic<const Storage*> shared_storage_;
  std::atomic<uint64_t> write_count_{0};
  std::atomic<uint64_t> n_live_{0};
  std::atomic<int64_t> shared_step_base_{0};
  std::mutex writer_mutex_;

  es_state state_;
  uint64_t n_candidates_ = 0;
  uint64_t n_clears_ = 0;
  uint64_t n_removals_ = 0;    // rows evicted or erased since creation
  uint64_t evict_cursor_ = 0;  // a multiple of 64
  bool is_restoring_ = false;  // rows come out of a checkpoint: they fitted into max_bytes when they were saved
  Region bloom_;
  Pins pins_;
  ChangeLog log_;
  EvictedRows evicted_;
  std::shared_ptr<Snapshot> snapshot_;  // that is being saved, or null
  std::atomic<uint64_t> n_snapshots_{0};
  ExportOrder export_order_;
  Graveyard graveyard_;

  // Scratch that is kept from call to call.
  Dedup dedup_;
  Lookup lookup_;
  Gradients gradients_;
  GradientSums sums_;
  UpdateLists updates_;
  Scratch<es_apply_report> reports_;  // of each part
  BirthLists births_;
  Scratch<const float*> assigned_;
  Scratch<float> assigned_sums_;
  Pooling pooling_;
  Selection selection_;
  // By the numbers of distinct keys, but for missing_.
  Scratch<uint32_t> missing_;    // distinct keys that had no row, in order of first occurrence
  Scratch<uint64_t> n_missing_;  // of each part
  Scratch<uint32_t> before_;     // occurrences counted before this batch, of missing keys
  Scratch<BloomPlace> places_;   // of missing keys, where bloom admission needs them
  const std::shared_ptr<TicketShelf> shelf_ = std::make_shared<TicketShelf>();
};

inline uint64_t next_table_id() {
  static std::atomic<uint64_t> count{0};
  return ++count;
}

inline Table::Table(const es_config& config, const Kernels& kernels)
    : config_(config),
      kernels_(kernels),
      id_(next_table_id()),
      fork_generation_(ThreadPool::fork_generation()),
      default_row_(value_bytes(config_.format)),
      storage_(std::make_shared<Storage>(HashSeed{config.hash_seed[0], config.hash_seed[1]}, config_.format)),
      shared_storage_(storage_.get()),
      state_(initial_state(config)),
      log_(config.track_changes != 0) {
  ThreadPool::instance();  // registers its fork handler
  store_row(config_.format, config_.default_row.data(), default_row_.data());
  if (config_.has_bloom()) bloom_ = Region::allocate(config_.bloom_bytes());
}

inline BirthContext Table::birth_context() const {
  return BirthContext{config_.format, config_.init, n_accumulators(config_.optimizer, config_.c.dim),
                      config_.initial_accumulator(), nullptr};
}

inline uint64_t Table::find(const int64_t* keys, uint64_t n, void* rows, Dtype row_dtype, es_missing missing,
                            uint8_t* found, uint32_t* freq, int64_t* step) const {
  const Epochs::Reader epoch;
  const Storage& storage = *shared_storage_.load(std::memory_order_acquire);
  std::vector<uint8_t> own_found;
  if (found == nullptr && missing != ES_MISSING_DEFAULT) {
    own_found.resize(n);
    found = own_found.data();
  }
  const FindArgs args = {keys,
                         rows,
                         row_dtype,
                         default_row_.data(),
                         found,
                         freq,
                         step,
                         shared_step_base_.load(std::memory_order_relaxed),
                         n * config_.c.dim * size_of(row_dtype) > streamed_from()};
  const uint64_t n_chunks = (n + Reader::kChunk - 1) / Reader::kChunk;
  const uint32_t n_parts = n_parts_for(n);
  std::atomic<uint64_t> n_found{0};
  ThreadPool::instance().run(n_parts, [&](uint32_t part) {
    Reader reader(storage, write_count_, config_.format, kernels_, args);
    const uint64_t end = std::min(n, n_chunks * (part + 1) / n_parts * Reader::kChunk);
    n_found.fetch_add(reader.run(n_chunks * part / n_parts * Reader::kChunk, end), std::memory_order_relaxed);
  });
  if (missing == ES_MISSING_DEFAULT || n_found.load() == n) return n_found.load();
  std::vector<float> scratch(config_.c.dim + 4);
  BirthContext birth = birth_context();
  birth.scratch = scratch.data();
  std::vector<char> row(value_bytes(config_.format));
  for (uint64_t i = 0; i < n; ++i) {
    if (found[i] != 0) continue;
    if (missing == ES_MISSING_RAISE) throw Error(ES_MISSING_KEY, "no row for key " + std::to_string(keys[i]));
    if (rows == nullptr) continue;
    kernels_.initial_values(birth, static_cast<uint64_t>(keys[i]), row.data());
    const void* source = row.data();
    kernels_.copy_rows(&source, 1, config_.format, row_dtype, false,
                       static_cast<char*>(rows) + i * config_.c.dim * size_of(row_dtype));
  }
  return n_found.load();
}

// The rows of one part, or its pooled bags.
inline void Table::find_part(const es_part& part, es_missing missing) const {
  if (part.offsets == nullptr) {
    find(part.keys, part.n, part.rows, static_cast<Dtype>(part.row_dtype), missing, nullptr, nullptr, nullptr);
    return;
  }
  if (missing == ES_MISSING_DEFAULT) {
    const Epochs::Reader epoch;
    const Storage& storage = *shared_storage_.load(std::memory_order_acquire);
    PooledReader(storage, write_count_, config_.format, kernels_, default_row_.data(), part).run();
    return;
  }
  const uint32_t dim = config_.c.dim;
  Scratch<float> rows;
  rows.resize(part.n * dim);
  find(part.keys, part.n, rows.data(), Dtype::kF32, missing, nullptr, nullptr, nullptr);
  Pooling pooling;
  pooling.reserve(part.n, dim);
  pooling.run(kernels_, RowFormat{dim, Dtype::kF32, false, 0}, part, [&](uint64_t i) { return rows.data() + i * dim; });
}

inline void Table::clear() {
  Writer writer(*this);
  auto fresh = std::make_shared<Storage>(HashSeed{config_.c.hash_seed[0], config_.c.hash_seed[1]}, config_.format);
  const uint64_t n_bytes = rows().bytes_after(0) + index().bytes();
  graveyard_.reserve_one();
  log_.reserve(0, rows().n_live());
  std::shared_ptr<Storage> old(std::move(storage_));
  storage_ = std::move(fresh);
  if (snapshot_ != nullptr) {
    snapshot_->detach();
    snapshot_->freeze_bloom();
  }
  Commit commit(*this);
  old->rows.for_each(0, old->rows.n_ids(),
                     [&](uint32_t row, const Meta* meta) { log_.note_removed(row, static_cast<int64_t>(meta->key)); });
  state_.n_erased += old->rows.n_live();
  shared_storage_.store(storage_.get(), std::memory_order_release);
  if (bloom_) std::memset(bloom_.data(), 0, bloom_.bytes());
  state_.n_bloom_added = 0;
  n_candidates_ = 0;
  evict_cursor_ = 0;
  ++n_clears_;
  graveyard_.bury(std::move(old), n_bytes);
}

inline void Table::reserve(uint64_t n_rows) {
  Writer writer(*this);
  const uint64_t n_more = n_rows > rows().n_live() ? n_rows - rows().n_live() : 0;
  if (is_bounded() && bytes_with(n_more, n_more, 0) > config_.c.max_bytes)
    throw Error(ES_OUT_OF_MEMORY, "reserve: " + std::to_string(n_rows) + " rows do not fit into max_bytes");
  rows().reserve(n_more);
  rows().prefault(rows().n_ids() + n_more);
  log_.reserve(rows().n_ids() + n_more, 0);
  index().ensure(n_more);
  index().finish_move();
  index().prefault();
}

inline void Table::set_pins(const int64_t* keys, uint64_t n) {
  Writer writer(*this);
  pins_.set(keys, n);
}

// Before the rows of a batch change.
inline void Table::protect(Ticket& ticket) {
  if (snapshot_ == nullptr || ticket.n_protected == snapshot_->number()) return;
  ticket.n_protected = snapshot_->number();
  ticket.distinct.in_parallel(
      [&](uint32_t, const DistinctPart& part) { snapshot_->protect(ticket.rows.data() + part.first, part.n_unique); });
}

inline std::shared_ptr<Snapshot> Table::snapshot_begin(bool is_delta, uint64_t log_bytes, int file) {
  require(!is_delta || log_.is_on(), "a delta needs track_changes");
  auto snapshot = std::make_shared<Snapshot>(n_snapshots_.fetch_add(1) + 1, format(), log_bytes, file);
  Writer writer(*this);
  require(snapshot_ == nullptr, "another snapshot of this table is being saved");
  if (config_.has_counter()) snapshot->begin_candidates();
  if (config_.has_bloom()) snapshot->take_bloom(bloom_, config_.bloom_bytes() / kPartitions / kBloomBlockBytes);
  snapshot->cut(storage_, state_, &log_, is_delta);
  snapshot_ = snapshot;
  return snapshot;
}

inline void Table::snapshot_candidates(Snapshot& snapshot) {
  for (bool has_more = true; has_more; std::this_thread::yield()) {
    Writer writer(*this);
    has_more = snapshot.collect_candidates();
  }
}

// Before the cell of a candidate changes, or of a key that becomes one.
inline void Table::note_candidate(uint64_t key, uint32_t word) {
  if (snapshot_ != nullptr) snapshot_->note_candidate(key, word);
}

inline void Table::snapshot_bloom(Snapshot& snapshot, uint32_t partition, uint8_t* out) {
  require(bloom_ && partition < kPartitions, "the table has no bloom filter, or not that partition");
  Writer writer(*this);
  snapshot.read_bloom(partition, out);
}

// Without is_saved, what had changed before the cut counts as changed again.
inline void Table::snapshot_end(Snapshot& snapshot, bool is_saved) {
  Writer writer(*this);
  if (!is_saved) log_.put_back(snapshot.changes(), !snapshot.is_detached());
  if (snapshot_.get() == &snapshot) snapshot_ = nullptr;
}

inline es_state Table::state() {
  Writer writer(*this);
  return state_;
}

inline void Table::set_state(const es_state& state) {
  require(state.struct_size == sizeof(es_state), "es_state is of another version");
  require(state.step >= 0 && state.step_base >= 0 && state.step_base <= state.step, "a state's steps are out of order");
  Writer writer(*this);
  require(rows().n_live() == 0 || state.step_base == state_.step_base, "step_base is set before rows are imported");
  state_ = state;
  shared_step_base_.store(state.step_base, std::memory_order_relaxed);
}

inline void Table::set_restoring(bool is_restoring) {
  Writer writer(*this);
  is_restoring_ = is_restoring;
}

inline void Table::bloom_read(uint32_t partition, uint8_t* out) {
  require(bloom_ && partition < kPartitions, "the table has no bloom filter, or not that partition");
  Writer writer(*this);
  const uint64_t n_bytes = config_.bloom_bytes() / kPartitions;
  std::memcpy(out, bloom_.data() + partition * n_bytes, n_bytes);
}

inline void Table::bloom_write(uint32_t partition, const uint8_t* in) {
  require(bloom_ && partition < kPartitions, "the table has no bloom filter, or not that partition");
  Writer writer(*this);
  const uint64_t n_bytes = config_.bloom_bytes() / kPartitions;
  if (snapshot_ != nullptr) snapshot_->freeze_bloom();
  std::memcpy(bloom_.data() + partition * n_bytes, in, n_bytes);
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_TABLE_H_
