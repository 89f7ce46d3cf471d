// apply_gradients, assign, import: writing values that the caller gives; docs/semantics.md, sections 6 and 8.
#ifndef EMBSTORE_CPU_APPLY_H_
#define EMBSTORE_CPU_APPLY_H_

#include "insert.h"

namespace embstore::cpu {

inline void Table::check_ticket(const Ticket& ticket) const {
  if (ticket.table_id != id_) throw Error(ES_TICKET, "the batch is of another table");
  if (ticket.n_clears != n_clears_) throw Error(ES_TICKET, "the batch is of before clear()");
}

// A ticket of bare keys: those with a row are found, the others have the given status.
inline void Table::look_up(const int64_t* keys, uint64_t n, es_key_status absent, Ticket* ticket) {
  dedup_.run(index(), keys, n, nullptr, &ticket->distinct);
  probe(*ticket);
  ticket->status.resize(ticket->cells.size());
  for (uint64_t u = 0; u < ticket->cells.size(); ++u)
    ticket->status[u] = static_cast<uint8_t>(is_row_word(ticket->cells[u].word) ? ES_FOUND : absent);
}

// Rows that are given, not seen in a batch, are born with freq 0.
inline void Table::forget_counts(Ticket& ticket) {
  before_.assign(ticket.cells.size(), 0);
  std::fill(ticket.distinct.occurrences.begin(), ticket.distinct.occurrences.end(), 0u);
}

// The gradient of each key, (n, dim).
inline std::vector<float> Table::key_gradients(const Parts& parts) const {
  const uint64_t dim = config_.c.dim;
  std::vector<float> grads(parts.n_keys() * dim);
  float* out = grads.data();
  for (const es_part& part : parts) {
    const float* const given = static_cast<const float*>(part.rows);
    if (part.offsets != nullptr)
      pool_bags_backward(given, config_.c.dim, part.offsets, part.n_bags, static_cast<PoolMode>(part.mode),
                         part.weights, out);
    else
      std::copy(given, given + part.n * dim, out);
    out += part.n * dim;
  }
  return grads;
}

inline es_apply_report Table::apply(const Parts& parts, Ticket* ticket, int64_t step, double lr) {
  Writer writer(*this);
  Ticket own;
  if (ticket == nullptr) {
    const JoinedKeys joined(parts);
    look_up(joined.keys(), joined.n(), ES_PENDING, &own);
    ticket = &own;
  } else {
    check_ticket(*ticket);
  }
  if (parts.n == 1 && parts.data->offsets == nullptr)
    return apply_locked(*ticket, static_cast<const float*>(parts.data->rows), step, lr);
  return apply_locked(*ticket, key_gradients(parts).data(), step, lr);
}

// Whether the key has a row now; the ticket's cell is then where it is.
inline bool Table::resolve(Ticket& ticket, uint64_t unique) {
  Cell& cell = ticket.cells[unique];
  const uint64_t key = ticket.distinct.keys[unique];
  const bool is_as_it_was = ticket.layout == index().layout() && cell.bucket != nullptr &&
                            cell.bucket->key[cell.slot] == key && cell.bucket->word[cell.slot] == cell.word;
  if (!is_as_it_was) cell = index().find(key, ticket.distinct.hashes[unique]);
  return is_row_word(cell.word);
}

inline void Table::resolve_all(Ticket& ticket, std::vector<uint32_t>* wanted, es_apply_report* report) {
  constexpr uint64_t kAhead = 16;
  const uint64_t n = ticket.status.size();
  const bool has_moved = ticket.layout != index().layout();
  wanted->reserve(n);
  for (uint64_t u = 0; u < n; ++u) {
    if (u + kAhead < n) {
      if (has_moved)
        index().prefetch(ticket.distinct.hashes[u + kAhead]);
      else
        __builtin_prefetch(ticket.cells[u + kAhead].bucket, 1);
    }
    if (!ticket.had_row(u))
      ++report->n_dropped;
    else if (resolve(ticket, u))
      wanted->push_back(static_cast<uint32_t>(u));
    else
      ++report->n_stale;
  }
  ticket.layout = index().layout();
}

inline void Table::filter_nonfinite(const Ticket& ticket, std::vector<uint32_t>* wanted, const float* grads,
                                    es_apply_report* report) const {
  if (config_.c.on_nonfinite == ES_NONFINITE_ALLOW) return;
  const uint32_t dim = config_.c.dim;
  const bool is_all_fine = kernels_.all_finite(grads, ticket.distinct.inverse.size() * dim);
  uint64_t n_kept = 0;
  for (const uint32_t u : *wanted) {
    const bool is_single = ticket.distinct.n_positions[u] == 1;
    const bool is_fine = (is_single && is_all_fine) || kernels_.all_finite(sums_.of(u), dim);
    if (!is_fine && config_.c.on_nonfinite == ES_NONFINITE_RAISE)
      throw Error(ES_NONFINITE, "the gradient of key " + std::to_string(static_cast<int64_t>(ticket.distinct.keys[u])) +
                                    " is not finite; on_nonfinite=\"skip\" would leave such rows alone");
    report->n_nonfinite += !is_fine;
    if (is_fine) (*wanted)[n_kept++] = u;
  }
  wanted->resize(n_kept);
}

inline RowTask Table::task_of(const Cell& cell, uint64_t key, const float* grad) {
  const uint32_t row = row_of_word(cell.word);
  return RowTask{rows().values(row), rows().slots(row), &cell.bucket->control, rows().meta(row), grad, key};
}

inline void Table::list_updates(const Ticket& ticket, const std::vector<uint32_t>& wanted) {
  tasks_.reset(wanted.size(), 2 * uint64_t{config_.c.dim} + format().n_slots);
  for (const uint32_t u : wanted)
    tasks_.add(ticket.cells[u].bucket, task_of(ticket.cells[u], ticket.distinct.keys[u], sums_.of(u)));
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

inline es_apply_report Table::apply_locked(Ticket& ticket, const float* grads, int64_t step, double lr) {
  es_apply_report report = {};
  std::vector<uint32_t> wanted;
  resolve_all(ticket, &wanted, &report);
  sums_.run(kernels_, ticket, wanted, grads, config_.c.dim);
  filter_nonfinite(ticket, &wanted, grads, &report);
  list_updates(ticket, wanted);
  log_.reserve(rows().n_ids(), 0);
  report.n_applied = wanted.size();
  advance_base(step);
  Commit commit(*this);
  step = clamped(step);
  note_train_step(step);
  UpdateContext context = {format(), config_.optimizer, {}, config_.init.stream, 0, 0, nullptr};
  context.scalars = update_scalars(config_.optimizer, lr, state_.beta1_power, state_.beta2_power);
  context.t = static_cast<uint32_t>(state_.n_train_steps);
  context.step = relative(step);
  run_updates(kernels_, context, tasks_);
  if (log_.is_on())
    for (const uint32_t u : wanted) log_.note_written(row_of_word(ticket.cells[u].word));
  state_.n_grads_dropped += report.n_dropped;
  state_.n_grads_stale += report.n_stale;
  state_.n_nonfinite += report.n_nonfinite;
  return report;
}

// ---- assign

// (n_unique, dim) float32: what each key's row shall hold.
inline void Table::assigned_values(Ticket& ticket, const float* values, es_assign_mode mode, std::vector<float>* out) {
  const uint64_t dim = config_.c.dim;
  const Distinct& d = ticket.distinct;
  const uint64_t n_unique = d.n_unique();
  out->resize(n_unique * dim);
  if (mode == ES_ASSIGN_REPLACE) {
    for (uint64_t i = 0; i < d.inverse.size(); ++i)
      std::memcpy(out->data() + d.inverse[i] * dim, values + i * dim, dim * sizeof(float));
    return;
  }
  std::vector<uint32_t> all(n_unique);
  for (uint32_t u = 0; u < n_unique; ++u) all[u] = u;
  sums_.run(kernels_, ticket, all, values, config_.c.dim);
  std::vector<float> scratch(dim + 4);
  std::vector<char> born(value_bytes(format()));
  BirthContext birth = birth_context();
  birth.scratch = scratch.data();
  for (uint64_t u = 0; u < n_unique; ++u) {
    const void* old = born.data();
    if (is_row_word(ticket.cells[u].word))
      old = rows().values(row_of_word(ticket.cells[u].word));
    else
      kernels_.initial_values(birth, d.keys[u], born.data());
    float* const sum = out->data() + u * dim;
    widen_row(old, format(), sum);
    add_row(sum, sums_.of(static_cast<uint32_t>(u)), config_.c.dim);
  }
}

inline es_assign_report Table::assign(const int64_t* keys, uint64_t n, const float* values, es_assign_mode mode,
                                      int64_t step) {
  Writer writer(*this);
  Ticket ticket;
  look_up(keys, n, ES_INSERTED, &ticket);
  const uint64_t n_unique = ticket.cells.size();
  std::vector<float> results;
  assigned_values(ticket, values, mode, &results);
  if (config_.c.on_nonfinite == ES_NONFINITE_RAISE && !kernels_.all_finite(results.data(), results.size()))
    throw Error(ES_NONFINITE, "assign: a value is not finite");
  advance_base(step);
  const Room room = make_room(ticket);
  forget_counts(ticket);
  reserve_for(ticket, room);
  es_assign_report report = {};
  Commit commit(*this);
  step = clamped(step);
  remove_victims(room.victims);
  const uint32_t relative_step = relative(step);
  make_rows(ticket, relative_step);
  run_births(kernels_, birth_context(), tasks_);
  for (uint64_t u = 0; u < n_unique; ++u) {
    const float* result = results.data() + u * config_.c.dim;
    if (ticket.status[u] == ES_INSERTED) store_row(format(), result, rows().values(born_[u]));
    report.n_inserted += ticket.status[u] == ES_INSERTED;
    report.n_refused += ticket.status[u] == ES_REFUSED;
    if (ticket.status[u] != ES_FOUND) continue;
    const RowTask task = task_of(ticket.cells[u], ticket.distinct.keys[u], nullptr);
    begin_write(task.control);
    store_row(format(), result, task.values);
    end_write(task.control);
    raise_step(task.meta, relative_step);
    log_.note_written(row_of_word(ticket.cells[u].word));
    ++report.n_replaced;
  }
  publish_rows(ticket);
  state_.n_refused += report.n_refused;
  state_.step = std::max(state_.step, step);
  return report;
}

// ---- import

inline void Table::import(const int64_t* keys, uint64_t n, const void* values, const float* slots, const uint32_t* freq,
                          const int64_t* step) {
  Writer writer(*this);
  int64_t latest = state_.step;
  for (uint64_t i = 0; step != nullptr && i < n; ++i) {
    require(step[i] >= 0, "import: a step is negative");
    latest = std::max(latest, step[i]);
  }
  Ticket ticket;
  look_up(keys, n, ES_INSERTED, &ticket);
  require(ticket.distinct.n_unique() == n, "import: a key is given twice");
  const Room room = count_needs(ticket);
  const bool has_rows = config_.c.max_rows == 0 || rows().n_live() + room.n_rows <= config_.c.max_rows;
  const bool has_bytes = fitting_prefix(ticket, 0) == n;
  if (!has_rows || !has_bytes)
    throw Error(ES_FULL, "import: " + std::to_string(room.n_rows) + " new rows do not fit beside " +
                             std::to_string(rows().n_live()));
  forget_counts(ticket);
  reserve_for(ticket, room);
  advance_base(latest);
  const ImportArgs args = {values, slots, freq, step};
  Commit commit(*this);
  make_rows(ticket, 0);
  for (uint64_t u = 0; u < n; ++u) {
    const bool is_new = ticket.status[u] == ES_INSERTED;
    const uint32_t row = is_new ? born_[u] : row_of_word(ticket.cells[u].word);
    import_row(row, is_new ? nullptr : &ticket.cells[u].bucket->control, u, args);
    log_.note_written(row);
  }
  publish_rows(ticket);
  state_.step = latest;
}

// Row number i of what is imported. A row that readers see is guarded by its bucket's control word.
inline void Table::import_row(uint32_t row, uint32_t* control, uint64_t i, const ImportArgs& args) {
  const uint32_t n_bytes = value_bytes(format());
  const uint64_t n_slots = format().n_slots;
  if (control != nullptr) begin_write(control);
  copy_row_shared(rows().values(row), static_cast<const char*>(args.values) + i * n_bytes, n_bytes);
  if (control != nullptr) end_write(control);
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
  Ticket ticket;
  dedup_.run(index(), keys, n, nullptr, &ticket.distinct);
  require(ticket.distinct.n_unique() == n, "import_candidates: a key is given twice");
  probe(ticket);
  for (uint64_t u = 0; u < n; ++u) {
    require(ticket.cells[u].bucket == nullptr, "import_candidates: a key is in the table already");
    require(counts[u] < config_.c.min_count, "import_candidates: a count reaches min_count");
    const bool is_epoch = epochs[u] <= state_.candidate_epoch && state_.candidate_epoch - epochs[u] <= kEpochMask;
    require(epochs[u] >= 0 && is_epoch, "import_candidates: an epoch is not one that a candidate can have");
  }
  if (config_.c.max_bytes != 0 && bytes_with(0, n, 0) > config_.c.max_bytes)
    throw Error(ES_FULL, "import_candidates: " + std::to_string(n) + " candidates do not fit into max_bytes");
  index().ensure(n);
  probe(ticket);
  Commit commit(*this);
  for (uint64_t u = 0; u < n; ++u)
    index().insert(ticket.distinct.keys[u], ticket.distinct.hashes[u],
                   word_of_candidate(counts[u], static_cast<uint64_t>(epochs[u])));
  n_candidates_ += n;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_APPLY_H_
