// evict and erase: rows that leave the table; docs/semantics.md, sections 7 and 8.
#ifndef EMBSTORE_CPU_REMOVE_H_
#define EMBSTORE_CPU_REMOVE_H_

#include "table.h"

namespace embstore::cpu {

// Room in the log and the free list, and copies of what will be gone. The last of a plan: it may throw.
inline void Table::plan_removal(const std::vector<Victim>& victims, bool is_collected) {
  log_.reserve(rows().n_ids(), victims.size());
  if (is_collected) evicted_.append(rows(), config_, state_.step_base, victims);
}

// Within a commit.
inline void Table::remove_victims(const std::vector<Victim>& victims) {
  constexpr uint64_t kAhead = 16;
  for (uint64_t i = 0; i < victims.size(); ++i) {
    if (i + kAhead < victims.size()) index().prefetch(index().hash(static_cast<uint64_t>(victims[i + kAhead].key)));
    const uint64_t key = static_cast<uint64_t>(victims[i].key);
    index().remove(index().find(key, index().hash(key)));
    rows().release(victims[i].row);
    log_.note_removed(victims[i].row, victims[i].key);
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
  EvictionScan scan(rows(), format(), kernels_, program, args.step, state_.step_base);
  Pins call_pins;
  if (args.n_pins > 0) call_pins.set(args.pins, args.n_pins);
  std::vector<Victim> victims;
  uint64_t at = deadline.is_bounded() && evict_cursor_ < rows().n_ids() ? evict_cursor_ : 0;
  do {  // a bounded scan gets on by a block at least
    const uint64_t end = std::min(rows().n_ids(), at + EvictionScan::kBlock);
    report.n_scanned += scan.run(at, end, &victims);
    at = end;
  } while (at < rows().n_ids() && !deadline.has_passed());
  const auto is_pinned = [&](const Victim& v) { return pins_.holds(v.key) || call_pins.holds(v.key); };
  victims.erase(std::remove_if(victims.begin(), victims.end(), is_pinned), victims.end());
  report.n_selected = victims.size();
  report.is_complete = at >= rows().n_ids();
  const uint64_t n_spare = rows().n_live() > args.keep_at_least ? rows().n_live() - args.keep_at_least : 0;
  keep_first(&victims, std::min(args.max_rows, n_spare));
  plan_removal(victims, args.collect != 0);
  if (args.dry_run != 0) return report;
  if (deadline.is_bounded()) evict_cursor_ = report.is_complete ? 0 : at;
  report.n_evicted = victims.size();
  Commit commit(*this);
  remove_victims(victims);
  return report;
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
      --n_candidates_;
      continue;
    }
    rows().release(row_of_word(cell.word));
    log_.note_removed(row_of_word(cell.word), static_cast<int64_t>(ticket->distinct.keys[u]));
    ++n_erased;
  }
  state_.n_erased += n_erased;
  n_removals_ += n_erased;
  return n_erased;
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_REMOVE_H_
