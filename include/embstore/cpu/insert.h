// find_or_insert: maintenance that is due, admission, room, births; docs/semantics.md, sections 4 and 5.
#ifndef EMBSTORE_CPU_INSERT_H_
#define EMBSTORE_CPU_INSERT_H_

#include "table.h"

namespace embstore::cpu {

inline std::unique_ptr<Ticket> Table::find_or_insert(const Parts& parts, int64_t given_step, bool admit_always) {
  Writer writer(*this);
  advance_base(given_step);
  const int64_t step = clamped(given_step);
  maintain(step);
  auto ticket = std::make_unique<Ticket>();
  ticket->table_id = id_;
  ticket->n_clears = n_clears_;
  const JoinedKeys joined(parts);
  dedup_.run(index(), joined.keys(), joined.n(), joined.counts(), &ticket->distinct);
  probe(*ticket);
  decide(*ticket, admit_always);
  const Room room = make_room(*ticket);
  reserve_for(*ticket, room);
  commit_insert(*ticket, room, step);
  uint64_t first = 0;
  for (const es_part& part : parts) {
    if (part.rows != nullptr) gather_part(*ticket, first, part);
    first += part.n;
  }
  return ticket;
}

// ---- what is due at a step

inline void Table::maintain(int64_t step) {
  const es_config& c = config_.c;
  index().continue_move();
  graveyard_.collect();
  if (config_.has_counter() && c.candidate_ttl > 0) expire_candidates(step);
  if (config_.has_bloom() && c.bloom_halve_every > 0 && step >= state_.next_bloom_halve) {
    halve_bloom();
    state_.next_bloom_halve = next_multiple(step, c.bloom_halve_every);
  }
  if (c.freq_halve_every > 0 && step >= state_.next_freq_halve) {
    halve_frequencies();
    state_.next_freq_halve = next_multiple(step, c.freq_halve_every);
  }
  if (c.evict_every > 0 && step >= state_.next_evict) {
    es_evict_args args = {};
    args.step = step;
    args.max_rows = UINT64_MAX;
    args.collect = c.collect_evicted;
    evict_locked(config_.eviction, args);
    state_.next_evict = next_multiple(step, c.evict_every);
  }
}

inline void Table::expire_candidates(int64_t step) {
  const int64_t ttl = config_.c.candidate_ttl;
  const int64_t now = step / candidate_grain(ttl);
  if (now <= state_.candidate_epoch) return;
  index().finish_move();
  Commit commit(*this);
  index().for_each([&](const Cell& cell) {
    if (!is_candidate_word(cell.word)) return;
    if (!is_candidate_expired(candidate_epoch(cell.word, state_.candidate_epoch), now, ttl)) return;
    index().remove(cell);
    --n_candidates_;
    ++state_.n_candidates_expired;
  });
  state_.candidate_epoch = now;
}

inline void Table::halve_bloom() {
  uint64_t* words = reinterpret_cast<uint64_t*>(bloom_.data());
  const uint64_t n = config_.bloom_bytes() / sizeof(uint64_t);
  for (uint64_t i = 0; i < n; ++i) words[i] = bloom_halved(words[i], config_.bloom.cell_bits);
  state_.n_bloom_added = 0;
}

inline void Table::halve_frequencies() {
  log_.reserve(rows().n_ids(), 0);
  Commit commit(*this);
  rows().for_each(0, rows().n_ids(), [&](uint32_t row, Meta* meta) {
    __atomic_store_n(&meta->freq, meta->freq >> 1, __ATOMIC_RELAXED);
    log_.note_written(row);
  });
}

// Keeps every step within 32 bits of the base; rows too old for the new base take it as their step. Cannot fail once
// the log has room for marks of all rows.
inline void Table::advance_base(int64_t step) {
  if (step - state_.step_base < (int64_t{1} << 32)) return;
  const int64_t base = step - (int64_t{1} << 31);
  const uint64_t delta = static_cast<uint64_t>(base - state_.step_base);
  log_.reserve(rows().n_ids(), 0);
  Commit commit(*this);
  rows().for_each(0, rows().n_ids(), [&](uint32_t row, Meta* meta) {
    const bool is_clamped = meta->step < delta;
    __atomic_store_n(&meta->step, is_clamped ? 0 : meta->step - static_cast<uint32_t>(delta), __ATOMIC_RELAXED);
    state_.n_steps_clamped += is_clamped;
    if (is_clamped) log_.note_written(row);
  });
  state_.step_base = base;
  shared_step_base_.store(base, std::memory_order_relaxed);
}

// A step before the base is taken as the base, and counted.
inline int64_t Table::clamped(int64_t step) {
  if (step >= state_.step_base) return step;
  ++state_.n_steps_clamped;
  return state_.step_base;
}

// A clamped step as rows keep it.
inline uint32_t Table::relative(int64_t step) const { return static_cast<uint32_t>(step - state_.step_base); }

// ---- planning

inline void Table::probe(Ticket& ticket) {
  constexpr uint64_t kAhead = 16;
  const Distinct& d = ticket.distinct;
  const uint64_t n = d.n_unique();
  ticket.cells.resize(n);
  for (uint64_t u = 0; u < std::min(n, kAhead); ++u) index().prefetch(d.hashes[u]);
  for (uint64_t u = 0; u < n; ++u) {
    if (u + kAhead < n) index().prefetch(d.hashes[u + kAhead]);
    ticket.cells[u] = index().find(d.keys[u], d.hashes[u]);
  }
  ticket.layout = index().layout();
}

inline uint32_t Table::count_before(const Ticket& ticket, uint64_t unique) const {
  const Cell& cell = ticket.cells[unique];
  if (is_candidate_word(cell.word)) return candidate_count(cell.word);
  if (!config_.has_bloom()) return 0;
  const BloomPlace& place = places_[unique];
  const uint8_t* block = reinterpret_cast<const uint8_t*>(bloom_.data()) + place.block * kBloomBlockBytes;
  return bloom_estimate(block, place, config_.bloom.cell_bits);
}

inline void Table::decide(Ticket& ticket, bool admit_always) {
  const Distinct& d = ticket.distinct;
  const uint64_t n = d.n_unique();
  ticket.status.assign(n, ES_FOUND);
  before_.assign(n, 0);
  if (config_.has_bloom()) places_.resize(n);
  const bool admits_all = admit_always || config_.c.admission_kind == ES_ADMIT_ALL;
  for (uint64_t u = 0; u < n; ++u) {
    if (is_row_word(ticket.cells[u].word)) continue;
    if (config_.has_bloom()) places_[u] = bloom_place(d.keys[u], config_.bloom);
    before_[u] = count_before(ticket, u);
    const bool admits = admits_all || is_admitted(before_[u], d.occurrences[u], config_.c.min_count);
    ticket.status[u] = admits ? ES_INSERTED : ES_PENDING;
  }
}

inline bool Table::needs_cell(const Ticket& ticket, uint64_t unique) const {
  if (ticket.cells[unique].bucket != nullptr) return false;
  const uint8_t status = ticket.status[unique];
  return status == ES_INSERTED || (status == ES_PENDING && config_.has_counter());
}

inline Table::Room Table::count_needs(const Ticket& ticket) const {
  Room room;
  for (uint64_t u = 0; u < ticket.status.size(); ++u) {
    room.n_rows += ticket.status[u] == ES_INSERTED;
    room.n_cells += needs_cell(ticket, u);
  }
  return room;
}

// Bytes held beside row memory and index, without the scratch of calls.
inline uint64_t Table::own_bytes() const { return bloom_.bytes() + log_.bytes() + graveyard_.bytes() + sizeof(Table); }

inline uint64_t Table::scratch_bytes() const {
  return dedup_.bytes() + sums_.bytes() + tasks_.bytes() + export_order_.bytes();
}

inline uint64_t Table::bytes_with(uint64_t n_rows, uint64_t n_cells, uint64_t n_victims) const {
  const uint64_t n_more_rows = n_rows > n_victims ? n_rows - n_victims : 0;
  return own_bytes() + storage_->rows.bytes_after(n_more_rows) + storage_->index.bytes() +
         storage_->index.growth_bytes(n_cells);
}

// How many distinct keys, from the first, can be served within max_bytes.
inline uint64_t Table::fitting_prefix(const Ticket& ticket, uint64_t n_victims) const {
  const uint64_t n = ticket.status.size();
  if (config_.c.max_bytes == 0) return n;
  std::vector<uint64_t> n_rows(n + 1, 0);
  std::vector<uint64_t> n_cells(n + 1, 0);
  for (uint64_t u = 0; u < n; ++u) {
    n_rows[u + 1] = n_rows[u] + (ticket.status[u] == ES_INSERTED);
    n_cells[u + 1] = n_cells[u] + needs_cell(ticket, u);
  }
  uint64_t fits = 0;
  uint64_t beyond = n + 1;
  while (beyond - fits > 1) {
    const uint64_t middle = fits + (beyond - fits) / 2;
    const bool needs_nothing = n_rows[middle] == 0 && n_cells[middle] == 0;
    if (needs_nothing || bytes_with(n_rows[middle], n_cells[middle], n_victims) <= config_.c.max_bytes)
      fits = middle;
    else
      beyond = middle;
  }
  return fits;
}

// The most live rows there may be, by max_rows and by what of this batch fits into max_bytes.
inline uint64_t Table::row_limit(const Ticket& ticket) {
  uint64_t limit = config_.c.max_rows != 0 ? config_.c.max_rows : UINT64_MAX;
  uint64_t prefix = fitting_prefix(ticket, 0);
  if (prefix < ticket.status.size()) {
    index().finish_move();  // gives the old index back
    prefix = fitting_prefix(ticket, 0);
  }
  if (prefix < ticket.status.size()) {
    uint64_t n_rows = 0;
    for (uint64_t u = 0; u < prefix; ++u) n_rows += ticket.status[u] == ES_INSERTED;
    limit = std::min(limit, storage_->rows.n_live() + n_rows);
  }
  return limit;
}

inline void Table::refuse_rows_beyond(Ticket& ticket, uint64_t limit) {
  uint64_t n = 0;
  for (uint8_t& status : ticket.status)
    if (status == ES_INSERTED && n++ >= limit) status = ES_REFUSED;
}

inline void Table::refuse_from(Ticket& ticket, uint64_t first) {
  for (uint64_t u = first; u < ticket.status.size(); ++u) {
    const bool takes_room = ticket.status[u] == ES_INSERTED || needs_cell(ticket, u);
    if (takes_room) ticket.status[u] = ES_REFUSED;
  }
}

// Turns what does not fit into refusals, or names the victims that make room, or throws.
inline Table::Room Table::make_room(Ticket& ticket) {
  const uint64_t n_live = storage_->rows.n_live();
  const uint64_t limit = row_limit(ticket);
  const uint64_t n_wanted = count_needs(ticket).n_rows;
  const bool has_too_many = n_wanted > (limit > n_live ? limit - n_live : 0);
  std::vector<Victim> victims;
  if (has_too_many && config_.c.on_full == ES_FULL_RAISE)
    throw Error(ES_FULL, std::to_string(n_wanted) + " new rows do not fit: the table holds " + std::to_string(n_live) +
                             " of at most " + std::to_string(limit));
  if (has_too_many && config_.c.on_full == ES_FULL_EVICT)
    victims = choose_victims(ticket, rows_to_remain(limit, n_wanted));
  const uint64_t n_left = n_live - victims.size();
  if (has_too_many) refuse_rows_beyond(ticket, limit > n_left ? limit - n_left : 0);
  const uint64_t prefix = fitting_prefix(ticket, victims.size());
  if (prefix < ticket.status.size() && config_.c.on_full == ES_FULL_RAISE)
    throw Error(ES_FULL, "the batch does not fit into max_bytes = " + std::to_string(config_.c.max_bytes));
  refuse_from(ticket, prefix);
  Room room = count_needs(ticket);
  room.victims = std::move(victims);
  return room;
}

// The rows that go when `target` shall remain: the least by (score, key) that are neither pinned nor of this batch.
inline std::vector<Victim> Table::choose_victims(const Ticket& ticket, uint64_t target) const {
  const Rows& rows = storage_->rows;
  std::vector<bool> is_kept(rows.n_ids(), false);
  for (const Cell& cell : ticket.cells)
    if (is_row_word(cell.word)) is_kept[row_of_word(cell.word)] = true;
  std::vector<Victim> victims;
  rows.for_each(0, rows.n_ids(), [&](uint32_t row, const Meta* meta) {
    const int64_t key = static_cast<int64_t>(meta->key);
    if (is_kept[row] || pins_.holds(key)) return;
    const int64_t score = config_.c.capacity_by == ES_CAPACITY_FREQ ? meta->freq : meta->step;
    victims.push_back(Victim{score, key, row});
  });
  keep_first(&victims, rows.n_live() > target ? rows.n_live() - target : 0);
  return victims;
}

// The last that may fail. Afterwards the ticket's cells are those of the index as it is now.
inline void Table::reserve_for(Ticket& ticket, const Room& room) {
  index().ensure(room.n_cells);
  if (ticket.layout != index().layout()) probe(ticket);
  const uint64_t n_more = room.n_rows > room.victims.size() ? room.n_rows - room.victims.size() : 0;
  rows().reserve(n_more);
  tasks_.reset(room.n_rows, config_.c.dim + 4 + format().n_slots);
  born_.resize(ticket.cells.size());
  log_.reserve(rows().n_ids() + n_more, room.victims.size());
  plan_removal(room.victims, config_.c.collect_evicted != 0);
}

// ---- committing

inline void Table::commit_insert(Ticket& ticket, const Room& room, int64_t step) {
  Commit commit(*this);
  remove_victims(room.victims);
  touch_hits(ticket);
  make_rows(ticket, relative(step));
  run_births(kernels_, birth_context(), tasks_);
  publish_rows(ticket);
  count_pending(ticket);
  state_.step = std::max(state_.step, step);
  ticket.layout = index().layout();
}

inline void Table::touch_hits(const Ticket& ticket) {
  constexpr uint64_t kAhead = 16;
  const uint64_t n = ticket.cells.size();
  for (uint64_t u = 0; u < n; ++u) {
    if (u + kAhead < n && is_row_word(ticket.cells[u + kAhead].word))
      __builtin_prefetch(rows().meta(row_of_word(ticket.cells[u + kAhead].word)), 1);
    if (ticket.status[u] != ES_FOUND) continue;
    const uint32_t row = row_of_word(ticket.cells[u].word);
    Meta* meta = rows().meta(row);
    __atomic_store_n(&meta->freq, saturating_add(meta->freq, ticket.distinct.occurrences[u]), __ATOMIC_RELAXED);
    log_.note_written(row);
  }
}

// Rows that the index does not name yet; their values and slots come by run_births, or by whoever has better ones.
inline void Table::make_rows(const Ticket& ticket, uint32_t step) {
  const Distinct& d = ticket.distinct;
  uint64_t n_born = 0;
  for (uint64_t u = 0; u < ticket.cells.size(); ++u) {
    if (ticket.status[u] != ES_INSERTED) continue;
    const uint32_t row = rows().take();
    Meta* meta = rows().meta(row);
    __atomic_store_n(&meta->key, d.keys[u], __ATOMIC_RELAXED);
    __atomic_store_n(&meta->step, step, __ATOMIC_RELAXED);
    __atomic_store_n(&meta->freq, saturating_add(before_[u], d.occurrences[u]), __ATOMIC_RELAXED);
    tasks_.add(n_born++, RowTask{rows().values(row), rows().slots(row), nullptr, meta, nullptr, d.keys[u]});
    log_.note_written(row);
    born_[u] = row;
  }
}

// From here on readers may see the rows: they are whole.
inline void Table::publish_rows(Ticket& ticket) {
  const Distinct& d = ticket.distinct;
  for (uint64_t u = 0; u < ticket.cells.size(); ++u) {
    if (ticket.status[u] != ES_INSERTED) continue;
    Cell& cell = ticket.cells[u];
    const uint32_t word = word_of_row(born_[u]);
    ++state_.n_inserted;
    if (cell.bucket == nullptr) {
      cell = index().insert(d.keys[u], d.hashes[u], word);
    } else {
      cell.word = word;  // it was a candidate
      index().set_word(cell, word);
      --n_candidates_;
    }
  }
}

inline void Table::count_pending(Ticket& ticket) {
  const Distinct& d = ticket.distinct;
  const uint64_t epoch = static_cast<uint64_t>(state_.candidate_epoch);  // 0 without candidate_ttl
  for (uint64_t u = 0; u < d.n_unique(); ++u) {
    state_.n_refused += ticket.status[u] == ES_REFUSED;
    if (ticket.status[u] != ES_PENDING) continue;
    if (config_.has_bloom()) {
      uint8_t* block = reinterpret_cast<uint8_t*>(bloom_.data()) + places_[u].block * kBloomBlockBytes;
      bloom_add(block, places_[u], config_.bloom.cell_bits, d.occurrences[u]);
      state_.n_bloom_added += before_[u] == 0;
      continue;
    }
    Cell& cell = ticket.cells[u];
    const uint32_t word = word_of_candidate(saturating_add(before_[u], d.occurrences[u]), epoch);
    if (cell.bucket == nullptr) {
      cell = index().insert(d.keys[u], d.hashes[u], word);
      ++n_candidates_;
    } else {
      cell.word = word;
      index().set_word(cell, word);
    }
  }
}

// What a part asked for: the rows of its keys, which begin at position `first` of the batch, or its pooled bags.
inline void Table::gather_part(const Ticket& ticket, uint64_t first, const es_part& part) const {
  if (part.offsets == nullptr) return gather(ticket, first, part.n, part.rows, static_cast<Dtype>(part.row_dtype));
  std::vector<float> rows(part.n * config_.c.dim);
  gather(ticket, first, part.n, rows.data(), Dtype::kF32);
  pool_bags(kernels_, rows.data(), Dtype::kF32, config_.c.dim, part.offsets, part.n_bags,
            static_cast<PoolMode>(part.mode), part.weights, static_cast<float*>(part.rows));
}

// The rows of positions [begin, begin + n) of the batch.
inline void Table::gather(const Ticket& ticket, uint64_t begin, uint64_t n, void* out, Dtype row_dtype) const {
  const uint32_t* const inverse = ticket.distinct.inverse.data() + begin;
  const uint64_t out_bytes = uint64_t{config_.c.dim} * size_of(row_dtype);
  const uint32_t n_parts = n_parts_for(n);
  ThreadPool::instance().run(n_parts, [&](uint32_t part) {
    const void* sources[Reader::kChunk];
    const uint64_t end = n * (part + 1) / n_parts;
    for (uint64_t first = n * part / n_parts; first < end; first += Reader::kChunk) {
      const uint64_t n_chunk = std::min(end - first, Reader::kChunk);
      for (uint64_t i = 0; i < n_chunk; ++i) {
        const uint32_t u = inverse[first + i];
        sources[i] = ticket.had_row(u) ? storage_->rows.values(row_of_word(ticket.cells[u].word))
                                       : static_cast<const void*>(default_row_.data());
      }
      kernels_.copy_rows(sources, n_chunk, config_.format, row_dtype, static_cast<char*>(out) + first * out_bytes);
    }
  });
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_INSERT_H_
