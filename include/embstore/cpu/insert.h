// find_or_insert: maintenance that is due, admission, room, births; docs/semantics.md, sections 4 and 5.
#ifndef EMBSTORE_CPU_INSERT_H_
#define EMBSTORE_CPU_INSERT_H_

#include "table.h"

namespace embstore::cpu {

// How many parts a batch of n keys is split into: several for each thread, so that none waits long for another.
inline uint32_t dedup_parts_for(uint64_t n) {
  constexpr uint32_t kPartsPerThread = 2;
  const uint32_t n_threads = n_parts_for(n);
  return n_threads == 1 ? 1 : std::min(n_threads * kPartsPerThread, Dedup::kMostParts);
}

inline HeldTicket Table::find_or_insert(const Parts& parts, int64_t given_step, bool admit_always) {
  Writer writer(*this);
  advance_base(given_step);
  const int64_t step = clamped(given_step);
  maintain(step);
  const JoinedKeys joined(parts);
  HeldTicket ticket = new_ticket();
  look_up(joined, dedup_parts_for(joined.n()), &*ticket);
  decide(*ticket, admit_always);
  const Room room = make_room(*ticket);
  reserve_for(*ticket, room);
  reserve_pooling(parts);
  commit_insert(*ticket, room, step);
  uint64_t first = 0;
  for (const es_part& part : parts) {
    if (part.rows != nullptr) gather_part(*ticket, first, part);
    first += part.n;
  }
  return ticket;
}

inline HeldTicket Table::new_ticket() {
  HeldTicket ticket(shelf_);
  ticket->table_id = id_;
  ticket->n_clears = n_clears_;
  ticket->n_protected = 0;
  return ticket;
}

// The batch's distinct keys and their cells.
inline void Table::look_up(const JoinedKeys& joined, uint32_t n_parts, Ticket* ticket) {
  dedup_.run(kernels_, index(), joined.keys(), joined.n(), joined.counts(), n_parts, &ticket->distinct, &lookup_);
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
    note_candidate(cell.bucket->key[cell.slot], cell.word);
    index().remove(cell);
    --n_candidates_;
    ++state_.n_candidates_expired;
  });
  state_.candidate_epoch = now;
}

inline void Table::halve_bloom() {
  uint64_t* words = reinterpret_cast<uint64_t*>(bloom_.data());
  const uint64_t n = config_.bloom_bytes() / sizeof(uint64_t);
  if (snapshot_ != nullptr) snapshot_->freeze_bloom();
  for (uint64_t i = 0; i < n; ++i) words[i] = bloom_halved(words[i], config_.bloom.cell_bits);
  state_.n_bloom_added = 0;
}

inline void Table::halve_frequencies() {
  log_.reserve(rows().n_ids(), 0);
  if (snapshot_ != nullptr) snapshot_->freeze_metas();
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
  if (snapshot_ != nullptr) snapshot_->freeze_metas();
  Commit commit(*this);
  rows().for_each(0, rows().n_ids(), [&](uint32_t row, Meta* meta) {
    const bool is_clamped = meta->step < delta;
    __atomic_store_n(&meta->step, is_clamped ? 0 : meta->step - static_cast<uint32_t>(delta), __ATOMIC_RELAXED);
    state_.n_steps_clamped += is_clamped;
    if (is_clamped) log_.note_written(row);
  });
  state_.step_base = base;
  state_.step = std::max(state_.step, base);  // also where the call fails later on
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

// Looks the keys up again where the index has moved since.
inline void Table::probe_again(const Ticket& ticket) {
  if (lookup_.layout == index().layout()) return;
  ticket.distinct.in_parallel([&](uint32_t, const DistinctPart& part) {
    kernels_.find_cells(index().view(), ticket.distinct.keys.data() + part.first, lookup_.hashes.data() + part.first,
                        part.n_unique, lookup_.cells.data() + part.first);
  });
  lookup_.layout = index().layout();
}

inline uint32_t Table::count_before(uint64_t unique) const {
  const Cell& cell = lookup_.cells[unique];
  if (is_candidate_word(cell.word)) return candidate_count(cell.word);
  if (!config_.has_bloom()) return 0;
  const BloomPlace& place = places_[unique];
  const uint8_t* block = reinterpret_cast<const uint8_t*>(bloom_.data()) + place.block * kBloomBlockBytes;
  return bloom_estimate(block, place, config_.bloom.cell_bits);
}

inline void Table::decide(Ticket& ticket, bool admit_always) {
  const Distinct& d = ticket.distinct;
  note_found(ticket, ES_INSERTED);
  if (ticket.is_all_rows) return;
  before_.resize(d.n());
  if (config_.has_bloom()) places_.resize(d.n());
  const bool admits_all = admit_always || config_.c.admission_kind == ES_ADMIT_ALL;
  for (uint64_t i = 0; i < missing_.size(); ++i) {
    const uint32_t u = missing_[i];
    if (config_.has_bloom()) places_[u] = bloom_place(d.keys[u], config_.bloom);
    before_[u] = count_before(u);
    const bool admits = admits_all || is_admitted(before_[u], lookup_.occurrences[u], config_.c.min_count);
    ticket.status[u] = admits ? ES_INSERTED : ES_PENDING;
  }
}

// Sets the rows and status of keys that have a row; the others get status `absent`, and are listed.
inline void Table::note_found(Ticket& ticket, es_key_status absent) {
  Distinct& d = ticket.distinct;
  ticket.status.resize(d.n());
  ticket.rows.resize(d.n());
  missing_.resize(d.n());
  n_missing_.resize(d.n_parts());
  d.in_parallel([&](uint32_t number, const DistinctPart& part) {
    uint64_t n_missing = 0;
    for (uint64_t u = part.first; u < part.end(); ++u) {
      const uint32_t word = lookup_.cells[u].word;
      const bool is_found = is_row_word(word);
      ticket.rows[u] = is_found ? row_of_word(word) : kNoRow;
      ticket.status[u] = static_cast<uint8_t>(is_found ? ES_FOUND : absent);
      missing_[part.first + n_missing] = static_cast<uint32_t>(u);
      n_missing += !is_found;
    }
    n_missing_[number] = n_missing;
  });
  uint64_t n = n_missing_[0];
  for (uint32_t part = 1; part < d.n_parts(); ++part) {
    const uint32_t* const own = missing_.data() + d.parts[part].first;
    std::copy(own, own + n_missing_[part], missing_.data() + n);
    n += n_missing_[part];
  }
  missing_.truncate(n);
  d.sort_by_first(missing_.data(), n);
  ticket.n_removals = n_removals_;
  ticket.is_all_rows = n == 0;
}

inline bool Table::needs_cell(const Ticket& ticket, uint64_t unique) const {
  if (lookup_.cells[unique].bucket != nullptr) return false;
  const uint8_t status = ticket.status[unique];
  return status == ES_INSERTED || (status == ES_PENDING && config_.has_counter());
}

inline Table::Room Table::count_needs(const Ticket& ticket) const {
  Room room;
  for (uint64_t i = 0; i < missing_.size(); ++i) {
    room.n_rows += ticket.status[missing_[i]] == ES_INSERTED;
    room.n_cells += needs_cell(ticket, missing_[i]);
  }
  return room;
}

// Bytes held beside row memory and index, without the scratch of calls.
inline uint64_t Table::own_bytes() const { return bloom_.bytes() + log_.bytes() + graveyard_.bytes() + sizeof(Table); }

inline uint64_t Table::scratch_bytes() const {
  return dedup_.bytes() + lookup_.bytes() + gradients_.bytes() + sums_.bytes() + updates_.bytes() + births_.bytes() +
         pooling_.bytes() + selection_.bytes() + shelf_->bytes() + export_order_.bytes() +
         (snapshot_ != nullptr ? snapshot_->bytes() : 0);
}

inline uint64_t Table::bytes_with(uint64_t n_rows, uint64_t n_cells, uint64_t n_victims) const {
  const uint64_t n_more_rows = n_rows > n_victims ? n_rows - n_victims : 0;
  return own_bytes() + storage_->rows.bytes_after(n_more_rows) + storage_->index.bytes() +
         storage_->index.growth_bytes(n_cells);
}

// How many of the missing keys, from the first, can be served within max_bytes.
inline uint64_t Table::fitting_prefix(const Ticket& ticket, uint64_t n_victims) const {
  const uint64_t n = missing_.size();
  if (!is_bounded()) return n;
  std::vector<uint64_t> n_rows(n + 1, 0);
  std::vector<uint64_t> n_cells(n + 1, 0);
  for (uint64_t i = 0; i < n; ++i) {
    n_rows[i + 1] = n_rows[i] + (ticket.status[missing_[i]] == ES_INSERTED);
    n_cells[i + 1] = n_cells[i] + needs_cell(ticket, missing_[i]);
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
  if (prefix < missing_.size()) {
    index().finish_move();  // gives the old index back
    prefix = fitting_prefix(ticket, 0);
  }
  if (prefix < missing_.size()) {
    uint64_t n_rows = 0;
    for (uint64_t i = 0; i < prefix; ++i) n_rows += ticket.status[missing_[i]] == ES_INSERTED;
    limit = std::min(limit, storage_->rows.n_live() + n_rows);
  }
  return limit;
}

inline void Table::refuse_rows_beyond(Ticket& ticket, uint64_t limit) {
  uint64_t n = 0;
  for (uint64_t i = 0; i < missing_.size(); ++i)
    if (ticket.status[missing_[i]] == ES_INSERTED && n++ >= limit) ticket.status[missing_[i]] = ES_REFUSED;
}

inline void Table::refuse_from(Ticket& ticket, uint64_t first) {
  for (uint64_t i = first; i < missing_.size(); ++i) {
    const uint32_t u = missing_[i];
    const bool takes_room = ticket.status[u] == ES_INSERTED || needs_cell(ticket, u);
    if (takes_room) ticket.status[u] = ES_REFUSED;
  }
}

// Turns what does not fit into refusals, or names the victims that make room, or throws.
inline Table::Room Table::make_room(Ticket& ticket) {
  if (ticket.is_all_rows) return Room();
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
  if (prefix < missing_.size() && config_.c.on_full == ES_FULL_RAISE)
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
  for (const uint32_t unique : ticket.distinct.inverse)
    if (ticket.status[unique] == ES_FOUND) is_kept[ticket.rows[unique]] = true;
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

// The last that may fail. Afterwards the cells are those of the index as it is now.
inline void Table::reserve_for(Ticket& ticket, const Room& room) {
  index().ensure(room.n_cells);
  probe_again(ticket);
  const uint64_t n_more = room.n_rows > room.victims.size() ? room.n_rows - room.victims.size() : 0;
  rows().reserve(n_more);
  births_.reserve(room.n_rows, config_.c.dim + 4 + format().n_slots);
  log_.reserve(rows().n_ids() + n_more, room.victims.size());
  plan_removal(room.victims, config_.c.collect_evicted != 0);
}

inline void Table::reserve_pooling(const Parts& parts) {
  uint64_t n_most = 0;
  for (const es_part& part : parts)
    if (part.offsets != nullptr && part.rows != nullptr) n_most = std::max(n_most, part.n);
  if (n_most > 0) pooling_.reserve(n_most, config_.c.dim);
}

// ---- committing

inline void Table::commit_insert(Ticket& ticket, const Room& room, int64_t step) {
  protect(ticket);
  Commit commit(*this);
  remove_victims(room.victims);
  touch_hits(ticket);
  state_.step = std::max(state_.step, step);
  if (!ticket.is_all_rows) {
    make_rows(ticket, relative(step));
    births_.run(kernels_, birth_context());
    publish_rows(ticket);
    count_pending(ticket);
  }
  ticket.n_removals = n_removals_;
}

inline void Table::touch_hits(const Ticket& ticket) {
  ticket.distinct.in_parallel([&](uint32_t, const DistinctPart& part) {
    kernels_.touch_rows(rows().meta_slab(), ticket.rows.data() + part.first, ticket.status.data() + part.first,
                        lookup_.occurrences + part.first, part.n_unique);
  });
  if (!log_.is_on()) return;
  for (const uint32_t unique : ticket.distinct.inverse)
    if (ticket.status[unique] == ES_FOUND) log_.note_written(ticket.rows[unique]);
}

// Rows that the index does not name yet; their values and slots come by births_, or by whoever has better ones.
inline void Table::make_rows(Ticket& ticket, uint32_t step) {
  const Distinct& d = ticket.distinct;
  uint64_t n_born = 0;
  for (uint64_t i = 0; i < missing_.size(); ++i) {
    const uint32_t u = missing_[i];
    if (ticket.status[u] != ES_INSERTED) continue;
    const uint32_t row = rows().take();
    Meta* meta = rows().meta(row);
    __atomic_store_n(&meta->key, d.keys[u], __ATOMIC_RELAXED);
    __atomic_store_n(&meta->step, step, __ATOMIC_RELAXED);
    __atomic_store_n(&meta->freq, saturating_add(before_[u], lookup_.occurrences[u]), __ATOMIC_RELAXED);
    births_.set(n_born++, RowTask{rows().values(row), rows().slots(row), d.keys[u]});
    log_.note_written(row);
    ticket.rows[u] = row;
  }
}

constexpr uint64_t kInsertsAhead = 16;

// From here on readers may see the rows: they are whole.
inline void Table::publish_rows(const Ticket& ticket) {
  const Distinct& d = ticket.distinct;
  for (uint64_t i = 0; i < missing_.size(); ++i) {
    if (i + kInsertsAhead < missing_.size()) index().prefetch_to_write(lookup_.hashes[missing_[i + kInsertsAhead]]);
    const uint32_t u = missing_[i];
    if (ticket.status[u] != ES_INSERTED) continue;
    const Cell& cell = lookup_.cells[u];
    const uint32_t word = word_of_row(ticket.rows[u]);
    ++state_.n_inserted;
    if (cell.bucket == nullptr) {
      index().insert(d.keys[u], lookup_.hashes[u], word);
    } else {
      note_candidate(d.keys[u], cell.word);
      index().set_word(cell, word);
      --n_candidates_;
    }
  }
}

inline void Table::count_pending(const Ticket& ticket) {
  const Distinct& d = ticket.distinct;
  const uint64_t epoch = static_cast<uint64_t>(state_.candidate_epoch);  // 0 without candidate_ttl
  for (uint64_t i = 0; i < missing_.size(); ++i) {
    if (i + kInsertsAhead < missing_.size()) index().prefetch_to_write(lookup_.hashes[missing_[i + kInsertsAhead]]);
    const uint32_t u = missing_[i];
    state_.n_refused += ticket.status[u] == ES_REFUSED;
    if (ticket.status[u] != ES_PENDING) continue;
    if (config_.has_bloom()) {
      uint8_t* block = reinterpret_cast<uint8_t*>(bloom_.data()) + places_[u].block * kBloomBlockBytes;
      if (snapshot_ != nullptr) snapshot_->keep_block(places_[u].block);
      bloom_add(block, places_[u], config_.bloom.cell_bits, lookup_.occurrences[u]);
      state_.n_bloom_added += before_[u] == 0;
      continue;
    }
    const Cell& cell = lookup_.cells[u];
    const uint32_t word = word_of_candidate(saturating_add(before_[u], lookup_.occurrences[u]), epoch);
    note_candidate(d.keys[u], cell.word);
    if (cell.bucket == nullptr) {
      index().insert(d.keys[u], lookup_.hashes[u], word);
      ++n_candidates_;
    } else {
      index().set_word(cell, word);
    }
  }
}

// ---- what the caller sees of it

// What a part asked for: the rows of its keys, which begin at position `first` of the batch, or its pooled bags.
inline void Table::gather_part(const Ticket& ticket, uint64_t first, const es_part& part) {
  const auto row_of = [&](uint64_t position) -> const void* {
    const uint32_t u = ticket.distinct.inverse[first + position];
    const uint32_t row = ticket.rows[u];
    return row != kNoRow ? storage_->rows.values(row) : default_row_.data();
  };
  if (part.offsets != nullptr) return pooling_.run(kernels_, format(), part, row_of);
  const Dtype dtype = static_cast<Dtype>(part.row_dtype);
  const uint64_t out_bytes = uint64_t{config_.c.dim} * size_of(dtype);
  const bool is_streamed = part.n * out_bytes > streamed_from();
  for_ranges(part.n, [&](uint32_t, uint64_t begin, uint64_t end) {
    const void* sources[Reader::kChunk];
    for (; begin < end; begin += Reader::kChunk) {
      const uint64_t n = std::min(end - begin, Reader::kChunk);
      for (uint64_t i = 0; i < n; ++i) sources[i] = row_of(begin + i);
      kernels_.copy_rows(sources, n, format(), dtype, is_streamed, static_cast<char*>(part.rows) + begin * out_bytes);
    }
  });
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_INSERT_H_
