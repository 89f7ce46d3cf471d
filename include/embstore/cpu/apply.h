// apply_gradients, assign, import: writing values that the caller gives; docs/semantics.md, sections 6 and 8.
#ifndef EMBSTORE_CPU_APPLY_H_
#define EMBSTORE_CPU_APPLY_H_

#include "checks.h"
#include "insert.h"

namespace embstore::cpu {

inline void Table::check_ticket(const Ticket& ticket) const {
  if (ticket.table_id != id_) throw Error(ES_TICKET, "the batch is of another table");
  if (ticket.n_clears != n_clears_) throw Error(ES_TICKET, "the batch is of before clear()");
}

// Rows that are given, not seen in a batch, are born with freq 0.
inline void Table::forget_counts(const Ticket& ticket) {
  const uint64_t n = ticket.distinct.n();
  uint32_t* const none = lookup_.counted.resize(n);
  std::fill(none, none + n, 0u);
  lookup_.occurrences = none;
  uint32_t* const before = before_.resize(n);
  std::fill(before, before + n, 0u);
}

inline es_apply_report Table::apply(const Parts& parts, Ticket* ticket, int64_t step, double lr) {
  Writer writer(*this);
  const GradientView grads = gradients_.view(parts, config_.c.dim);
  if (ticket != nullptr) {
    check_ticket(*ticket);
    return apply_locked(*ticket, grads, step, lr);
  }
  HeldTicket own = new_ticket();
  const JoinedKeys joined(parts);
  look_up(joined, dedup_parts_for(joined.n()), &*own);
  note_found(*own, ES_PENDING);
  return apply_locked(*own, grads, step, lr);
}

// Where the key's row is now, or kNoRow.
inline uint32_t Table::row_now(uint32_t row, uint64_t key) {
  if (row < rows().n_ids() && rows().is_live(row) && rows().meta(row)->key == key) return row;
  const Cell cell = index().find(key, index().hash(key));
  return is_row_word(cell.word) ? row_of_word(cell.word) : kNoRow;
}

// Lists the keys whose rows are to be updated, and counts the others.
inline void Table::resolve(Ticket& ticket, es_apply_report* report) {
  const Distinct& d = ticket.distinct;
  reports_.resize(d.n_parts());
  d.in_parallel([&](uint32_t number, const DistinctPart& part) {
    reports_[number] = es_apply_report{};
    list_wanted(ticket, number, part, &reports_[number]);
  });
  for (uint32_t part = 0; part < d.n_parts(); ++part) {
    report->n_dropped += reports_[part].n_dropped;
    report->n_stale += reports_[part].n_stale;
  }
  if (report->n_stale == 0) ticket.n_removals = n_removals_;
}

inline void Table::list_wanted(Ticket& ticket, uint32_t number, const DistinctPart& part, es_apply_report* report) {
  const bool is_as_it_was = ticket.n_removals == n_removals_;
  uint32_t* const wanted = updates_.wanted(part);
  uint64_t& n_wanted = updates_.n_wanted(number);
  n_wanted = 0;
  for (uint64_t u = part.first; u < part.end(); ++u) {
    if (!ticket.is_all_rows && !ticket.had_row(u)) {
      ++report->n_dropped;
      continue;
    }
    if (!is_as_it_was) ticket.rows[u] = row_now(ticket.rows[u], ticket.distinct.keys[u]);
    if (ticket.rows[u] == kNoRow)
      ++report->n_stale;
    else
      wanted[n_wanted++] = static_cast<uint32_t>(u);
  }
}

// Some sums are not finite: such rows are left alone, or the whole call is refused.
inline void Table::filter_nonfinite(const Ticket& ticket, es_apply_report* report) {
  const Distinct& d = ticket.distinct;
  uint64_t first_bad = d.n();
  for (uint32_t number = 0; number < d.n_parts(); ++number) {
    uint32_t* const wanted = updates_.wanted(d.parts[number]);
    uint64_t n_kept = 0;
    for (uint64_t i = 0; i < updates_.n_wanted(number); ++i) {
      const uint32_t u = wanted[i];
      if (kernels_.all_finite(sums_.of(u), config_.c.dim)) {
        wanted[n_kept++] = u;
        continue;
      }
      first_bad = std::min<uint64_t>(first_bad, d.first[u]);
      ++report->n_nonfinite;
    }
    updates_.n_wanted(number) = n_kept;
  }
  if (config_.c.on_nonfinite == ES_NONFINITE_RAISE)
    throw Error(ES_NONFINITE, "the gradient of key " +
                                  std::to_string(static_cast<int64_t>(d.keys[d.inverse[first_bad]])) +
                                  " is not finite; on_nonfinite=\"skip\" would leave such rows alone");
}

// t counts the distinct steps that trained; the powers of the betas go with it.
inline void Table::note_train_step(int64_t step) {
  state_.step = std::max(state_.step, step);
  if (state_.n_train_steps > 0 && step <= state_.last_train_step) return;
  ++state_.n_train_steps;
  state_.last_train_step = step;
  if (!has_moments(config_.optimizer)) return;
  state_.beta1_power *= config_.optimizer.p[0];
  state_.beta2_power *= config_.optimizer.p[1];
}

// For the keys that updates_ wants; `vectors` by the numbers of distinct keys.
inline UpdateContext Table::update_context(const Ticket& ticket, const float* const* vectors, int64_t step) {
  UpdateContext context = {};
  context.values = rows().values_slab();
  context.slots = rows().slots_slab();
  context.meta = rows().meta_slab();
  context.versions = rows().versions();
  context.rows = ticket.rows.data();
  context.vectors = vectors;
  context.format = format();
  context.optimizer = config_.optimizer;
  context.stream = config_.init.stream;
  context.step = relative(step);
  return context;
}

inline void Table::log_written(const Ticket& ticket) {
  const Distinct& distinct = ticket.distinct;
  for (uint32_t part = 0; log_.is_on() && part < distinct.n_parts(); ++part)
    for (uint64_t i = 0; i < updates_.n_wanted(part); ++i)
      log_.note_written(ticket.rows[updates_.wanted(distinct.parts[part])[i]]);
}

inline es_apply_report Table::apply_locked(Ticket& ticket, const GradientView& grads, int64_t step, double lr) {
  es_apply_report report = {};
  const Distinct& distinct = ticket.distinct;
  updates_.reserve(distinct, 2 * uint64_t{config_.c.dim} + format().n_slots);
  resolve(ticket, &report);
  const bool is_finite = sums_.run(kernels_, ticket, updates_, grads);
  if (!is_finite && config_.c.on_nonfinite != ES_NONFINITE_ALLOW) filter_nonfinite(ticket, &report);
  log_.reserve(rows().n_ids(), 0);
  updates_.split(distinct, ticket.rows.data());
  report.n_applied = updates_.n_wanted_in_all();
  advance_base(step);
  protect(ticket);
  Commit commit(*this);
  step = clamped(step);
  note_train_step(step);
  UpdateContext context = update_context(ticket, sums_.data(), step);
  context.scalars = update_scalars(config_.optimizer, lr, state_.beta1_power, state_.beta2_power);
  context.t = static_cast<uint32_t>(state_.n_train_steps);
  updates_.run(kernels_.update_rows, distinct, context);
  log_written(ticket);
  state_.n_grads_dropped += report.n_dropped;
  state_.n_grads_stale += report.n_stale;
  state_.n_nonfinite += report.n_nonfinite;
  return report;
}

// ---- assign

// What each key's row shall hold, by the numbers of distinct keys: the last of the key's values, or the old row and the
// sum of them.
inline const float* const* Table::assigned_values(Ticket& ticket, const float* values, es_assign_mode mode) {
  const uint64_t dim = config_.c.dim;
  const Distinct& d = ticket.distinct;
  if (mode == ES_ASSIGN_REPLACE) {
    const float** const last = assigned_.resize(d.n());
    d.in_parallel([&](uint32_t, const DistinctPart& part) {
      d.for_each_position(part, [&](uint32_t i) { last[d.inverse[i]] = values + i * dim; });
    });
    return last;
  }
  sums_.run(kernels_, ticket, updates_, GradientView{values, nullptr, nullptr, config_.c.dim});
  float* const results = assigned_sums_.resize(d.n() * dim);
  const float** const result_of = assigned_.resize(d.n());
  std::vector<float> scratch(dim + 4);
  std::vector<char> born(value_bytes(format()));
  BirthContext birth = birth_context();
  birth.scratch = scratch.data();
  for (const DistinctPart& part : d.parts) {
    for (uint64_t u = part.first; u < part.end(); ++u) {
      const bool is_found = ticket.status[u] == ES_FOUND;
      if (!is_found) kernels_.initial_values(birth, d.keys[u], born.data());
      float* const result = results + u * dim;
      widen_row(is_found ? rows().values(ticket.rows[u]) : born.data(), format(), result);
      add_row(result, sums_.of(static_cast<uint32_t>(u)), config_.c.dim);
      result_of[u] = result;
    }
  }
  return result_of;
}

inline bool Table::all_assigned_finite(const Distinct& distinct, const float* const* results) const {
  std::atomic<bool> is_finite{true};
  distinct.in_parallel([&](uint32_t, const DistinctPart& part) {
    if (!kernels_.all_rows_finite(results + part.first, part.n_unique, config_.c.dim))
      is_finite.store(false, std::memory_order_relaxed);
  });
  return is_finite.load(std::memory_order_relaxed);
}

// The keys that `is_wanted` (unique) says, in updates_.
template <class IsWanted>
void Table::want(const Distinct& distinct, const IsWanted& is_wanted) {
  distinct.in_parallel([&](uint32_t number, const DistinctPart& part) {
    uint64_t n = 0;
    for (uint64_t u = part.first; u < part.end(); ++u)
      if (is_wanted(u)) updates_.wanted(part)[n++] = static_cast<uint32_t>(u);
    updates_.n_wanted(number) = n;
  });
}

inline es_assign_report Table::assign(const int64_t* keys, uint64_t n, const float* values, es_assign_mode mode,
                                      int64_t step) {
  Writer writer(*this);
  HeldTicket held = new_ticket();
  Ticket& ticket = *held;
  const Distinct& distinct = ticket.distinct;
  look_up(JoinedKeys(keys, n), dedup_parts_for(n), &ticket);
  note_found(ticket, ES_INSERTED);
  updates_.reserve(distinct, format().dim);
  want(distinct, [](uint64_t) { return true; });
  const float* const* const results = assigned_values(ticket, values, mode);
  if (config_.c.on_nonfinite == ES_NONFINITE_RAISE && !all_assigned_finite(distinct, results))
    throw Error(ES_NONFINITE, "assign: a value is not finite");
  advance_base(step);
  const Room room = make_room(ticket);
  forget_counts(ticket);
  reserve_for(ticket, room);
  es_assign_report report = {};
  protect(ticket);
  Commit commit(*this);
  step = clamped(step);
  remove_victims(room.victims);
  for (const uint32_t u : missing_) {
    report.n_inserted += ticket.status[u] == ES_INSERTED;
    report.n_refused += ticket.status[u] == ES_REFUSED;
  }
  report.n_replaced = distinct.n_unique - missing_.size();
  make_rows(ticket, relative(step));
  births_.run_slots(birth_context());
  want(distinct, [&](uint64_t u) { return ticket.status[u] != ES_REFUSED; });
  updates_.split(distinct, ticket.rows.data());
  updates_.run(kernels_.assign_rows, distinct, update_context(ticket, results, step));
  log_written(ticket);
  publish_rows(ticket);
  state_.n_refused += report.n_refused;
  state_.step = std::max(state_.step, step);
  return report;
}

// ---- import

inline void Table::import(const int64_t* keys, uint64_t n, const void* values, const float* slots, const uint32_t* freq,
                          const int64_t* step) {
  Writer writer(*this);
  int64_t latest = step == nullptr ? state_.step : 0;  // of the rows
  int64_t earliest = latest;
  for (uint64_t i = 0; step != nullptr && i < n; ++i) {
    require(step[i] >= 0, "import: a step is negative");
    latest = std::max(latest, step[i]);
    earliest = std::min(earliest, step[i]);
  }
  HeldTicket held = new_ticket();
  Ticket& ticket = *held;
  if (first_out_of_order(keys, n, 0, kPartitions - 1, nullptr) == n) {  // as a checkpoint holds them
    Dedup::run_distinct(kernels_, index(), keys, n, &ticket.distinct, &lookup_);
  } else {
    look_up(JoinedKeys(keys, n), 1, &ticket);
    require(ticket.distinct.n_unique == n, "import: a key is given twice");
  }
  note_found(ticket, ES_INSERTED);
  const Room room = count_needs(ticket);
  const bool has_rows = config_.c.max_rows == 0 || rows().n_live() + room.n_rows <= config_.c.max_rows;
  const bool has_bytes = fitting_prefix(ticket, 0) == missing_.size();
  if (!has_rows || !has_bytes)
    throw Error(ES_FULL, "import: " + std::to_string(room.n_rows) + " new rows do not fit beside " +
                             std::to_string(rows().n_live()));
  forget_counts(ticket);
  reserve_for(ticket, room);
  advance_base(latest);
  const ImportArgs args = {values, slots, freq, step};
  protect(ticket);
  Commit commit(*this);
  make_rows(ticket, 0);
  const bool is_each_apart = missing_.size() == n && earliest >= state_.step_base;
  for_ranges(n, is_each_apart ? n_parts_for(n) : 1, [&](uint32_t, uint64_t begin, uint64_t end) {
    for (uint64_t u = begin; u < end; ++u) import_row(ticket.rows[u], ticket.status[u] == ES_INSERTED, u, args);
  });
  for (uint64_t u = 0; log_.is_on() && u < n; ++u) log_.note_written(ticket.rows[u]);
  publish_rows(ticket);
  state_.step = std::max(state_.step, latest);
}

// Row number i of what is imported.
inline void Table::import_row(uint32_t row, bool is_new, uint64_t i, const ImportArgs& args) {
  const uint32_t n_bytes = value_bytes(format());
  const uint64_t n_slots = format().n_slots;
  if (!is_new) begin_write(rows().version(row));
  copy_row_shared(rows().values(row), static_cast<const char*>(args.values) + i * n_bytes, n_bytes);
  if (!is_new) end_write(rows().version(row));
  if (args.slots != nullptr && n_slots > 0)
    std::memcpy(rows().slots(row), args.slots + i * n_slots, n_slots * sizeof(float));
  else
    birth_slots(birth_context(), rows().slots(row));
  Meta* meta = rows().meta(row);
  const int64_t step = clamped(args.step != nullptr ? args.step[i] : state_.step);
  __atomic_store_n(&meta->freq, args.freq != nullptr ? args.freq[i] : 0, __ATOMIC_RELAXED);
  __atomic_store_n(&meta->step, relative(step), __ATOMIC_RELAXED);
}

inline void Table::import_candidates(const int64_t* keys, uint64_t n, const uint32_t* counts, const int64_t* epochs) {
  require(config_.has_counter(), "import_candidates: the table has no counter admission");
  Writer writer(*this);
  HeldTicket ticket = new_ticket();
  look_up(JoinedKeys(keys, n), 1, &*ticket);
  const Distinct& d = ticket->distinct;
  require(d.n_unique == n, "import_candidates: a key is given twice");
  for (uint64_t u = 0; u < n; ++u) {
    require(lookup_.cells[u].bucket == nullptr, "import_candidates: a key is in the table already");
    require(counts[u] < config_.c.min_count, "import_candidates: a count reaches min_count");
    const bool is_epoch = epochs[u] <= state_.candidate_epoch && state_.candidate_epoch - epochs[u] <= kEpochMask;
    require(epochs[u] >= 0 && is_epoch, "import_candidates: an epoch is not one that a candidate can have");
  }
  if (is_bounded() && bytes_with(0, n, 0) > config_.c.max_bytes)
    throw Error(ES_FULL, "import_candidates: " + std::to_string(n) + " candidates do not fit into max_bytes");
  index().ensure(n);
  Commit commit(*this);
  for (uint64_t u = 0; u < n; ++u) {
    note_candidate(d.keys[u], kWordEmpty);
    index().insert(d.keys[u], lookup_.hashes[u], word_of_candidate(counts[u], static_cast<uint64_t>(epochs[u])));
  }
  n_candidates_ += n;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_APPLY_H_
