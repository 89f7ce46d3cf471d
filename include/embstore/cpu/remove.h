// evict and erase: rows that leave the table; docs/semantics.md, sections 7 and 8.
#ifndef EMBSTORE_CPU_REMOVE_H_
#define EMBSTORE_CPU_REMOVE_H_

#include <optional>

#include "table.h"

namespace embstore::cpu {

// Room in the log, and copies of what will be gone. The last of a plan: it may throw.
inline void Table::plan_removal(const std::vector<Victim>& victims, bool is_collected) {
  log_.reserve(rows().n_ids(), victims.size());
  if (!is_collected) return;
  std::vector<uint32_t> ids;
  ids.reserve(victims.size());
  for (const Victim& v : victims) ids.push_back(v.row);
  evicted_.reserve(victims.size(), format());
  evicted_.append(RowSource{rows(), kernels_, format(), state_.step_base}, ids.data(), ids.size());
}

// Within a commit.
inline void Table::remove_victims(const std::vector<Victim>& victims) {
  constexpr uint64_t kAhead = 32;
  uint64_t hashes[kAhead];
  for (uint64_t i = 0; snapshot_ != nullptr && i < victims.size(); ++i) snapshot_->protect(&victims[i].row, 1);
  for (uint64_t i = 0; i < victims.size() + kAhead; ++i) {
    if (i >= kAhead) {
      const Victim& v = victims[i - kAhead];
      index().remove(index().find(static_cast<uint64_t>(v.key), hashes[i % kAhead]));
      rows().release(v.row);
      log_.note_removed(v.row, v.key);
    }
    if (i < victims.size()) {
      hashes[i % kAhead] = index().hash(static_cast<uint64_t>(victims[i].key));
      index().prefetch(hashes[i % kAhead]);
    }
  }
  state_.n_evicted += victims.size();
  n_removals_ += victims.size();
}

inline es_evict_report Table::evict(const es_evict_args& args) {
  require(args.struct_size == sizeof(es_evict_args), "es_evict_args is of another version");
  require(args.step >= 0, "evict: step is negative");
  const std::vector<Predicate> program = predicates_of(args.predicates, args.n_predicates);
  require(!program.empty(), "evict: there is no policy");
  Writer writer(*this);
  const es_evict_report report = evict_locked(program, args);
  if (args.dry_run == 0) state_.step = std::max(state_.step, args.step);
  return report;
}

inline es_evict_report Table::evict_locked(const std::vector<Predicate>& program, const es_evict_args& args) {
  es_evict_report report = {};
  const Deadline deadline(args.max_seconds);
  const uint64_t n_ids = rows().n_ids();
  Pins call_pins;
  if (args.n_pins > 0) call_pins.set(args.pins, args.n_pins);
  selection_.begin(deadline.is_bounded() && evict_cursor_ < n_ids ? evict_cursor_ : 0, n_ids);
  EvictionScan scan(rows(), format(), kernels_, program, args.step, state_.step_base);
  scan.run(deadline, &selection_);
  report.n_scanned = scan.n_scanned();
  report.n_selected = scan.n_selected() - spare(pins_) - spare(call_pins);
  const uint64_t n_spare = rows().n_live() > args.keep_at_least ? rows().n_live() - args.keep_at_least : 0;
  const uint64_t n_victims = std::min({args.max_rows, n_spare, report.n_selected});
  if (n_victims < report.n_selected) keep_oldest(n_victims);
  report.is_complete = selection_.end_row() >= n_ids;
  const uint64_t next_row = remove_selected(n_victims, deadline, args.dry_run != 0, args.collect != 0, &report);
  if (deadline.is_bounded() && args.dry_run == 0) {
    report.is_complete = next_row >= n_ids;
    evict_cursor_ = report.is_complete ? 0 : next_row / kWordRows * kWordRows;
  }
  return report;
}

// Takes pinned rows out of the selection; how many were in it.
inline uint64_t Table::spare(const Pins& pins) {
  uint64_t n_spared = 0;
  for (const int64_t key : pins.keys()) {
    const uint64_t bits = static_cast<uint64_t>(key);
    const uint32_t word = index().find(bits, index().hash(bits)).word;
    if (is_row_word(word)) n_spared += selection_.drop(row_of_word(word));
  }
  return n_spared;
}

// Leaves n rows in the selection, the least by (step, key).
inline void Table::keep_oldest(uint64_t n) {
  std::vector<Victim> selected;
  selection_.for_each([&](uint32_t row) {
    const Meta* meta = rows().meta(row);
    selected.push_back(Victim{meta->step, static_cast<int64_t>(meta->key), row});
  });
  put_first(&selected, n);
  for (uint64_t i = n; i < selected.size(); ++i) selection_.drop(selected[i].row);
}

// Removes the n selected rows in the order of their ids, at least those of the first block whatever the deadline.
// Copies them beforehand if they are collected; a dry run does no more than that. Returns the row where it ended.
// All is one commit: a reader loses less by knowing of a commit than by finding out (bench/DEAD_ENDS.md).
inline uint64_t Table::remove_selected(uint64_t n, const Deadline& deadline, bool is_dry_run, bool is_collected,
                                       es_evict_report* report) {
  constexpr uint64_t kRows = 256;  // between two looks at the clock
  if (n == 0 || (is_dry_run && !is_collected)) return selection_.end_row();
  uint32_t ids[kRows];
  std::vector<Victim> victims;
  victims.reserve(kRows);
  log_.reserve(rows().n_ids(), n);
  if (is_collected) evicted_.reserve(n, format());  // the last that may fail
  const uint64_t first_end = selection_.first_row() + EvictionScan::kBlockRows;
  uint64_t at = selection_.first_row();
  std::optional<Commit> commit;
  if (!is_dry_run) commit.emplace(*this);
  while (at < selection_.end_row() && (at < first_end || !deadline.is_too_near(0))) {
    const uint64_t n_ids = selection_.take(&at, kRows, ids);
    for (uint64_t i = 0; i < n_ids; ++i) __builtin_prefetch(rows().meta(ids[i]));
    if (is_collected) evicted_.append(RowSource{rows(), kernels_, format(), state_.step_base}, ids, n_ids);
    if (is_dry_run) continue;
    victims.clear();
    for (uint64_t i = 0; i < n_ids; ++i)
      victims.push_back(Victim{0, static_cast<int64_t>(rows().meta(ids[i])->key), ids[i]});
    remove_victims(victims);
    report->n_evicted += n_ids;
  }
  return at;
}

inline uint64_t Table::erase(const int64_t* keys, uint64_t n) {
  Writer writer(*this);
  HeldTicket ticket = new_ticket();
  look_up(JoinedKeys(keys, n), 1, &*ticket);
  const uint64_t n_unique = ticket->distinct.n_unique;
  log_.reserve(rows().n_ids(), n_unique);
  uint64_t n_erased = 0;
  Commit commit(*this);
  for (uint64_t u = 0; u < n_unique; ++u) {
    const Cell& cell = lookup_.cells[u];
    if (cell.bucket == nullptr) continue;
    index().remove(cell);
    if (is_candidate_word(cell.word)) {
      note_candidate(ticket->distinct.keys[u], cell.word);
      --n_candidates_;
      continue;
    }
    const uint32_t row = row_of_word(cell.word);
    if (snapshot_ != nullptr) snapshot_->protect(&row, 1);
    rows().release(row);
    log_.note_removed(row, static_cast<int64_t>(ticket->distinct.keys[u]));
    ++n_erased;
  }
  state_.n_erased += n_erased;
  n_removals_ += n_erased;
  return n_erased;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_REMOVE_H_
