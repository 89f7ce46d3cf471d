// embstore.h over cpu/table: argument checks, the floating-point environment, and exceptions turned into status codes.
#include "embstore/embstore.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <system_error>
#include <vector>

#include "embstore/cpu/apply.h"
#include "embstore/cpu/buffers.h"
#include "embstore/cpu/checks.h"
#include "embstore/cpu/crc32.h"
#include "embstore/cpu/insert.h"
#include "embstore/cpu/inspect.h"
#include "embstore/cpu/parts.h"
#include "embstore/cpu/remove.h"
#include "embstore/cpu/table.h"
#include "guarded.h"
#include "paths/paths.h"
#include "table_handle.h"

namespace cpu = embstore::cpu;
using cpu::require;
using embstore::Dtype;
using embstore::fail;
using embstore::guarded;
using embstore::last_error;

struct es_snapshot {
  es_table* table;
  std::shared_ptr<cpu::Snapshot> snapshot;
};

struct es_ticket {
  explicit es_ticket(cpu::HeldTicket held) : ticket(std::move(held)) {}
  cpu::HeldTicket ticket;
  cpu::TicketView view;
};

namespace {

// The row loops of this process. Null and a message in `*why` where EMBSTORE_CPU asks for what is not there.
const cpu::Kernels* choose_kernels(const char** why) {
  const char* forced = std::getenv("EMBSTORE_CPU");
  const std::string wanted = forced != nullptr ? forced : "";
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (wanted == "avx512" || wanted.empty())) return &cpu::kernels_avx512();
  if (has_avx2 && (wanted == "avx2" || wanted.empty())) return &cpu::kernels_avx2();
#endif
  if (wanted == "baseline" || wanted.empty()) return &cpu::kernels_baseline();
  *why = "EMBSTORE_CPU must be baseline, avx2 or avx512, and one that this processor has";
  return nullptr;
}

const cpu::Kernels& kernels() {
  static const char* why = nullptr;
  static const cpu::Kernels* chosen = choose_kernels(&why);
  if (chosen == nullptr) throw cpu::Error(ES_INVALID, why);
  return *chosen;
}

Dtype row_dtype_of(const es_table* table, int32_t dtype) {
  const Dtype wanted = static_cast<Dtype>(dtype);
  require(wanted == Dtype::kF32 || wanted == table->table.config().format.dtype,
          "rows are given as float32 or in the table's own dtype");
  return wanted;
}

void require_batch(uint64_t n, const void* keys, int64_t step) {
  require(n < UINT32_MAX, "a batch has at most 2^32 - 2 keys");
  require(n == 0 || keys != nullptr, "keys is null");
  require(step >= 0, "step is negative");
}

uint32_t threads_of(int32_t n_threads) {
  require(n_threads >= 1, "n_threads is less than 1");
  return std::min(static_cast<uint32_t>(n_threads), static_cast<uint32_t>(cpu::ThreadPool::instance().n_threads()));
}

void require_good(const cpu::Snapshot& snapshot) {
  const int error = snapshot.error();
  if (error != 0) throw cpu::Error(ES_SNAPSHOT, "the snapshot was lost: " + std::system_category().message(error));
}

cpu::Parts parts_of(const es_batch& batch) { return cpu::Parts{batch.parts, batch.n_parts}; }

void require_offsets(const es_part& part) {
  require(part.mode >= ES_POOL_SUM && part.mode <= ES_POOL_SQRTN, "unknown pooling mode");
  require(part.offsets[0] == 0 && part.offsets[part.n_bags] == static_cast<int64_t>(part.n),
          "offsets go from 0 to the number of keys");
  for (uint64_t bag = 0; bag < part.n_bags; ++bag)
    require(part.offsets[bag] <= part.offsets[bag + 1], "offsets go down");
}

// Runs `body` for each batch; where it throws, the batch says that it is the one.
template <class Body>
void for_each_batch(es_batch* batches, uint64_t n_batches, const Body& body) {
  for (uint64_t b = 0; b < n_batches; ++b) {
    batches[b].has_failed = 1;
    body(batches[b]);
    batches[b].has_failed = 0;
  }
}

// Whether threads had better serve one table each than all of them one table after another: where no table has more
// than a thread's share of the keys.
bool are_for_a_thread_each(const es_batch* batches, uint64_t n_batches) {
  const uint64_t n_threads = static_cast<uint64_t>(cpu::ThreadPool::instance().n_threads());
  uint64_t n = 0, n_most = 0;
  for (const es_batch* batch = batches; batch < batches + n_batches; ++batch) {
    const uint64_t own = parts_of(*batch).n_keys();
    n += own;
    n_most = std::max(n_most, own);
  }
  return n_threads > 1 && n_batches >= n_threads && n_most * n_threads <= n;
}

// Runs `body` for all batches, of which none keeps the others from being served, and throws what the first of those
// that failed threw; it says that it is the one.
template <class Body>
void serve_batches(es_batch* batches, uint64_t n_batches, const Body& body) {
  std::vector<std::exception_ptr> failures(n_batches);
  const auto serve = [&](uint32_t b) {
    const embstore::FloatEnvironment environment;
    try {
      body(batches[b]);
    } catch (...) {
      failures[b] = std::current_exception();
    }
  };
  if (are_for_a_thread_each(batches, n_batches))
    cpu::ThreadPool::instance().run(static_cast<uint32_t>(n_batches), serve);
  else
    for (uint32_t b = 0; b < n_batches; ++b) serve(b);
  for (uint64_t b = 0; b < n_batches; ++b) {
    if (failures[b] == nullptr) continue;
    batches[b].has_failed = 1;
    std::rethrow_exception(failures[b]);
  }
}

void require_batches(es_batch* batches, uint64_t n_batches, int64_t step) {
  for (uint64_t b = 0; b < n_batches; ++b) batches[b].has_failed = 0;
  for_each_batch(batches, n_batches, [&](const es_batch& batch) {
    for (const es_batch* other = batches; other < &batch; ++other)
      require(batch.table != other->table, "a table is given twice in one call");
    uint64_t n = 0;
    for (const es_part& part : parts_of(batch)) {
      n += part.n;
      require_batch(std::max(n, part.n), &part, step);
      if (part.offsets != nullptr)
        require_offsets(part);
      else
        row_dtype_of(batch.table, part.row_dtype);
    }
  });
}

void require_keys(const es_batch& batch) {
  for (const es_part& part : parts_of(batch)) require(part.n == 0 || part.keys != nullptr, "keys is null");
}

// By ticket the parts must be as long as those that it came of; by key the keys must be there.
void require_gradients(const es_batch& batch) {
  for (const es_part& part : parts_of(batch)) require(part.n == 0 || part.rows != nullptr, "gradients are null");
  if (batch.ticket == nullptr) return require_keys(batch);
  require(parts_of(batch).n_keys() == batch.ticket->ticket->distinct.n(),
          "the gradients are not as many as the keys of the batch");
}

void require_rate(double lr) { require(lr - lr == 0.0, "lr is not finite"); }

}  // namespace

extern "C" {

const char* es_version(void) { return EMBSTORE_VERSION; }
const char* es_last_error(void) { return last_error.c_str(); }

const char* es_cpu_path(void) {
  const char* why = nullptr;
  const cpu::Kernels* chosen = choose_kernels(&why);
  return chosen != nullptr ? chosen->name : "none";
}

int es_num_threads(void) { return cpu::ThreadPool::instance().n_threads(); }

int es_set_num_threads(int n) {
  return guarded([&] {
    require(n >= 1 && n <= cpu::ThreadPool::kMostThreads, "the number of threads must be 1..1024");
    cpu::ThreadPool::instance().set_n_threads(n);
  });
}

uint64_t es_name_hash(const char* utf8, uint64_t n_bytes) { return embstore::name_hash(utf8, n_bytes); }
uint64_t es_fixed_hash(int64_t key) { return embstore::fixed_hash(static_cast<uint64_t>(key)); }

int es_fixed_hash_many(const int64_t* keys, uint64_t n, uint64_t* out) {
  for (uint64_t i = 0; i < n; ++i) out[i] = es_fixed_hash(keys[i]);
  return ES_OK;
}

int es_table_create(const es_config* config, es_table** out) {
  return guarded([&] { *out = new es_table(*config, kernels()); });
}

void es_table_retain(es_table* table) { table->n_references.fetch_add(1, std::memory_order_relaxed); }

void es_table_release(es_table* table) {
  if (table->n_references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete table;
}

uint32_t es_table_dim(const es_table* table) { return table->table.config().c.dim; }
uint64_t es_table_len(const es_table* table) { return table->table.size(); }

int es_table_stats(es_table* table, es_stats* out) {
  return guarded([&] { *out = table->table.stats(); });
}

int es_table_get_state(es_table* table, es_state* out) {
  return guarded([&] { *out = table->table.state(); });
}

int es_table_set_state(es_table* table, const es_state* in) {
  return guarded([&] { table->table.set_state(*in); });
}

int es_table_set_restoring(es_table* table, int32_t is_restoring) {
  return guarded([&] { table->table.set_restoring(is_restoring != 0); });
}

int es_table_reserve(es_table* table, uint64_t n_rows) {
  return guarded([&] { table->table.reserve(n_rows); });
}

int es_table_clear(es_table* table) {
  return guarded([&] { table->table.clear(); });
}

int es_plan(const es_config* config, uint64_t n_rows, uint64_t n_candidates, es_plan_report* out) {
  return guarded([&] { *out = cpu::Table::plan(*config, n_rows, n_candidates); });
}

int es_find(es_table* table, const int64_t* keys, uint64_t n, void* rows, int32_t row_dtype, int32_t missing,
            uint8_t* found, uint32_t* freq, int64_t* step) {
  return guarded([&] {
    require_batch(n, keys, 0);
    require(missing >= ES_MISSING_DEFAULT && missing <= ES_MISSING_RAISE, "unknown missing");
    const Dtype dtype = row_dtype_of(table, row_dtype);
    table->table.find(keys, n, rows, dtype, static_cast<es_missing>(missing), found, freq, step);
  });
}

int es_contains(es_table* table, const int64_t* keys, uint64_t n, uint8_t* found) {
  return es_find(table, keys, n, nullptr, ES_F32, ES_MISSING_DEFAULT, found, nullptr, nullptr);
}

int es_find_or_insert(es_table* table, const int64_t* keys, uint64_t n, const uint32_t* counts, int64_t step,
                      int32_t admit_always, void* rows, int32_t row_dtype, es_ticket** ticket) {
  return guarded([&] {
    require_batch(n, keys, step);
    const Dtype dtype = row_dtype_of(table, row_dtype);
    const es_part part = {keys, n, counts, rows, static_cast<int32_t>(dtype), 0, nullptr, 0, nullptr};
    *ticket = new es_ticket(table->table.find_or_insert(cpu::Parts{&part, 1}, step, admit_always != 0));
  });
}

void es_ticket_destroy(es_ticket* ticket) { delete ticket; }
uint64_t es_ticket_n(const es_ticket* ticket) { return ticket->ticket->distinct.n(); }
uint64_t es_ticket_n_unique(const es_ticket* ticket) { return ticket->ticket->distinct.n_unique; }
int es_ticket_view(es_ticket* ticket, const int64_t** keys, const uint8_t** status, const uint32_t** inverse) {
  return guarded([&] {
    ticket->view.make(*ticket->ticket);
    *keys = ticket->view.keys();
    *status = ticket->view.status();
    *inverse = ticket->view.inverse();
  });
}

int es_apply_gradients(es_table* table, es_ticket* ticket, const float* grads, int64_t step, double lr,
                       es_apply_report* report) {
  return guarded([&] {
    require_batch(0, nullptr, step);
    require_rate(lr);
    const uint64_t n = ticket->ticket->distinct.n();
    const es_part part = {nullptr, n, nullptr, const_cast<float*>(grads), ES_F32, 0, nullptr, 0, nullptr};
    *report = table->table.apply(cpu::Parts{&part, 1}, &*ticket->ticket, step, lr);
  });
}

int es_apply_gradients_by_key(es_table* table, const int64_t* keys, uint64_t n, const float* grads, int64_t step,
                              double lr, es_apply_report* report) {
  return guarded([&] {
    require_batch(n, keys, step);
    require_rate(lr);
    const es_part part = {keys, n, nullptr, const_cast<float*>(grads), ES_F32, 0, nullptr, 0, nullptr};
    *report = table->table.apply(cpu::Parts{&part, 1}, nullptr, step, lr);
  });
}

int es_find_many(es_batch* batches, uint64_t n_batches, int32_t missing) {
  return guarded([&] {
    require(missing >= ES_MISSING_DEFAULT && missing <= ES_MISSING_RAISE, "unknown missing");
    require_batches(batches, n_batches, 0);
    for_each_batch(batches, n_batches, [](const es_batch& batch) {
      require_keys(batch);
      for (const es_part& part : parts_of(batch))
        require(part.offsets == nullptr || part.rows != nullptr, "the rows of bags are null");
    });
    serve_batches(batches, n_batches, [&](const es_batch& batch) {
      for (const es_part& part : parts_of(batch)) batch.table->table.find_part(part, static_cast<es_missing>(missing));
    });
  });
}

int es_find_or_insert_many(es_batch* batches, uint64_t n_batches, int64_t step, int32_t admit_always) {
  return guarded([&] {
    for (uint64_t b = 0; b < n_batches; ++b) batches[b].ticket = nullptr;
    require_batches(batches, n_batches, step);
    for_each_batch(batches, n_batches, require_keys);
    serve_batches(batches, n_batches, [&](es_batch& batch) {
      batch.ticket = new es_ticket(batch.table->table.find_or_insert(parts_of(batch), step, admit_always != 0));
    });
  });
}

int es_apply_gradients_many(es_batch* batches, uint64_t n_batches, int64_t step) {
  return guarded([&] {
    require_batches(batches, n_batches, step);
    for_each_batch(batches, n_batches, [&](const es_batch& batch) {
      require_rate(batch.lr);
      require_gradients(batch);
    });
    serve_batches(batches, n_batches, [&](es_batch& batch) {
      cpu::Ticket* const ticket = batch.ticket != nullptr ? &*batch.ticket->ticket : nullptr;
      batch.report = batch.table->table.apply(parts_of(batch), ticket, step, batch.lr);
    });
  });
}

int es_assign(es_table* table, const int64_t* keys, uint64_t n, const float* values, int32_t mode, int64_t step,
              es_assign_report* report) {
  return guarded([&] {
    require_batch(n, keys, step);
    require(mode == ES_ASSIGN_REPLACE || mode == ES_ASSIGN_ADD, "unknown assign mode");
    *report = table->table.assign(keys, n, values, static_cast<es_assign_mode>(mode), step);
  });
}

int es_import(es_table* table, const int64_t* keys, uint64_t n, const void* values, const float* slots,
              const uint32_t* freq, const int64_t* step) {
  return guarded([&] {
    require_batch(n, keys, 0);
    table->table.import(keys, n, values, slots, freq, step);
  });
}

int es_import_candidates(es_table* table, const int64_t* keys, uint64_t n, const uint32_t* counts,
                         const int64_t* epochs) {
  return guarded([&] {
    require_batch(n, keys, 0);
    table->table.import_candidates(keys, n, counts, epochs);
  });
}

int es_erase(es_table* table, const int64_t* keys, uint64_t n, uint64_t* n_erased) {
  return guarded([&] {
    require_batch(n, keys, 0);
    *n_erased = table->table.erase(keys, n);
  });
}

int es_partition_counts(es_table* table, int32_t candidates, uint64_t* counts) {
  return guarded([&] { table->table.partition_counts(candidates != 0, counts); });
}

int es_export(es_table* table, uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys, void* values,
              float* slots, uint32_t* freq, int64_t* step, uint64_t* n_out) {
  return guarded([&] {
    *n_out = table->table.export_rows(first, last, capacity, cpu::RowArrays{keys, values, slots, freq, step});
  });
}

int es_export_candidates(es_table* table, uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys,
                         uint32_t* counts, int64_t* epochs, uint64_t* n_out) {
  return guarded([&] { *n_out = table->table.export_candidates(first, last, capacity, keys, counts, epochs); });
}

int es_bloom_partition_bytes(es_table* table, uint64_t* n_bytes) {
  *n_bytes = table->table.config().bloom_bytes() / embstore::kPartitions;
  return ES_OK;
}

int es_bloom_read(es_table* table, uint32_t partition, uint8_t* out) {
  return guarded([&] { table->table.bloom_read(partition, out); });
}

int es_bloom_write(es_table* table, uint32_t partition, const uint8_t* in) {
  return guarded([&] { table->table.bloom_write(partition, in); });
}

int es_evict(es_table* table, const es_evict_args* args, es_evict_report* report) {
  return guarded([&] { *report = table->table.evict(*args); });
}

int es_set_pins(es_table* table, const int64_t* keys, uint64_t n) {
  return guarded([&] {
    require_batch(n, keys, 0);
    table->table.set_pins(keys, n);
  });
}

int es_evicted_count(es_table* table, uint64_t* n) {
  return guarded([&] { *n = table->table.evicted_count(); });
}

int es_evicted_take(es_table* table, uint64_t capacity, int64_t* keys, void* values, float* slots, uint32_t* freq,
                    int64_t* step) {
  return guarded([&] { table->table.evicted_take(capacity, cpu::RowArrays{keys, values, slots, freq, step}); });
}

int es_changes_count(es_table* table, uint64_t* n_upserted, uint64_t* n_deleted) {
  return guarded([&] {
    std::vector<int64_t> upserted, deleted;
    table->table.changes(&upserted, &deleted);
    *n_upserted = upserted.size();
    *n_deleted = deleted.size();
  });
}

int es_changes_read(es_table* table, uint64_t capacity_upserted, int64_t* out_upserted, uint64_t capacity_deleted,
                    int64_t* out_deleted) {
  return guarded([&] {
    std::vector<int64_t> upserted, deleted;
    table->table.changes(&upserted, &deleted);
    require(upserted.size() <= capacity_upserted && deleted.size() <= capacity_deleted,
            "changes: the arrays are too short");
    std::copy(upserted.begin(), upserted.end(), out_upserted);
    std::copy(deleted.begin(), deleted.end(), out_deleted);
  });
}

int es_changes_reset(es_table* table) {
  return guarded([&] { table->table.changes_reset(); });
}

int es_snapshot_begin(es_table* table, int32_t delta, uint64_t log_bytes, int32_t file, es_snapshot** out) {
  return guarded([&] {
    auto snapshot = std::make_unique<es_snapshot>();
    snapshot->table = table;
    snapshot->snapshot = table->table.snapshot_begin(delta != 0, log_bytes, file);
    *out = snapshot.release();
  });
}

int es_snapshot_prepare(es_snapshot* snapshot, int32_t n_threads, int32_t prefault) {
  return guarded([&] {
    snapshot->table->table.snapshot_candidates(*snapshot->snapshot);
    if (prefault != 0) snapshot->snapshot->prefault();
    snapshot->snapshot->prepare(threads_of(n_threads));
  });
}

int es_snapshot_get_stats(es_snapshot* snapshot, es_snapshot_stats* out) {
  return guarded([&] {
    require(out->struct_size == sizeof(es_snapshot_stats), "es_snapshot_stats is of another version");
    cpu::Snapshot& s = *snapshot->snapshot;
    *out = es_snapshot_stats{sizeof(es_snapshot_stats), s.error(),          s.n_rows(),   s.n_live(),
                             s.candidates().size(),     s.deleted().size(), s.n_in_file()};
  });
}

int es_snapshot_state(es_snapshot* snapshot, es_state* out) {
  return guarded([&] { *out = snapshot->snapshot->state(); });
}

int es_snapshot_counts(es_snapshot* snapshot, int32_t candidates, uint64_t* counts) {
  return guarded([&] {
    for (uint32_t p = 0; p < embstore::kPartitions; ++p) counts[p] = candidates != 0 ? 0 : snapshot->snapshot->count(p);
    if (candidates == 0) return;
    for (const cpu::Candidate& candidate : snapshot->snapshot->candidates())
      ++counts[embstore::partition_of(static_cast<uint64_t>(candidate.key))];
  });
}

int es_snapshot_rows(es_snapshot* snapshot, uint64_t first, uint64_t n, int32_t n_threads, int64_t* keys, void* values,
                     float* slots, uint32_t* freq, int64_t* step) {
  return guarded([&] {
    cpu::Snapshot& s = *snapshot->snapshot;
    require(first <= s.n_rows() && n <= s.n_rows() - first, "a snapshot has fewer rows");
    s.read_rows(first, n, cpu::RowArrays{keys, values, slots, freq, step}, threads_of(n_threads));
    require_good(s);
  });
}

int es_snapshot_deleted(es_snapshot* snapshot, int64_t* keys) {
  return guarded([&] {
    const std::vector<int64_t>& deleted = snapshot->snapshot->deleted();
    std::copy(deleted.begin(), deleted.end(), keys);
    require_good(*snapshot->snapshot);
  });
}

int es_snapshot_candidates(es_snapshot* snapshot, uint64_t first, uint64_t n, int64_t* keys, uint32_t* counts,
                           int64_t* epochs) {
  return guarded([&] {
    const std::vector<cpu::Candidate>& all = snapshot->snapshot->candidates();
    require(first <= all.size() && n <= all.size() - first, "a snapshot has fewer candidates");
    const int64_t latest = snapshot->snapshot->state().candidate_epoch;
    for (uint64_t i = 0; i < n; ++i) {
      keys[i] = all[first + i].key;
      counts[i] = embstore::candidate_count(all[first + i].word);
      epochs[i] = embstore::candidate_epoch(all[first + i].word, latest);
    }
  });
}

int es_snapshot_bloom(es_snapshot* snapshot, uint32_t partition, uint8_t* out) {
  return guarded([&] {
    snapshot->table->table.snapshot_bloom(*snapshot->snapshot, partition, out);
    require_good(*snapshot->snapshot);
  });
}

int es_snapshot_end(es_snapshot* snapshot, int32_t is_saved) {
  const std::unique_ptr<es_snapshot> gone(snapshot);
  return guarded([&] { gone->table->table.snapshot_end(*gone->snapshot, is_saved != 0); });
}

int es_check_rows(const int64_t* keys, uint64_t n, uint32_t first, uint32_t last, const int64_t* previous,
                  const void* values, int32_t value_dtype, uint32_t dim, const float* slots, uint32_t slot_floats,
                  uint64_t* first_out_of_order, uint64_t* n_nonfinite) {
  return guarded([&] {
    require(value_dtype >= ES_F32 && value_dtype <= ES_BF16, "unknown dtype");
    *first_out_of_order = cpu::first_out_of_order(keys, n, first, last, previous);
    *n_nonfinite = cpu::n_nonfinite_rows(values, static_cast<Dtype>(value_dtype), dim, slots, slot_floats, n);
  });
}

int es_crc32(const void* data, uint64_t n, uint32_t* crc) {
  static const bool is_fast = cpu::has_crc32();
  if (!is_fast) return fail(ES_INVALID, "this processor multiplies no polynomials");
  *crc = cpu::crc32(static_cast<const uint8_t*>(data), n, *crc);
  return ES_OK;
}

int es_buffer_take(uint64_t n_bytes, es_buffer** out) {
  return guarded([&] { *out = reinterpret_cast<es_buffer*>(cpu::Buffers::instance().take(n_bytes)); });
}

void* es_buffer_data(const es_buffer* buffer) { return reinterpret_cast<const cpu::Buffer*>(buffer)->data(); }
void es_buffer_give(es_buffer* buffer) { cpu::Buffers::instance().give(reinterpret_cast<cpu::Buffer*>(buffer)); }

int es_buffers_release(void) {
  return guarded([] { cpu::Buffers::instance().release(); });
}

int es_buffers_stats(es_buffer_stats* out) {
  return guarded([&] { *out = cpu::Buffers::instance().stats(); });
}

}  // extern "C"
