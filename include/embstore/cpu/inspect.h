// Looking at the whole table: counts, bytes, export by partition, the change log, and plans.
#ifndef EMBSTORE_CPU_INSPECT_H_
#define EMBSTORE_CPU_INSPECT_H_

#include "insert.h"

namespace embstore::cpu {

inline es_stats Table::stats() {
  Writer writer(*this);
  es_stats s = {};
  s.struct_size = sizeof(es_stats);
  s.slot_floats = format().n_slots;
  s.n_live = rows().n_live();
  s.n_candidates = n_candidates_;
  s.n_tombstones = index().n_tombstones();
  s.n_cells = index().n_cells();
  s.nbytes_index = index().bytes();
  s.nbytes_meta = rows().meta_bytes_held();
  s.nbytes_values = rows().value_bytes_held();
  s.nbytes_slots = rows().slot_bytes_held();
  s.nbytes_bloom = bloom_.bytes();
  s.nbytes_other = own_bytes() - bloom_.bytes() + scratch_bytes();
  const uint64_t n_bits = config_.bloom_bytes() * 8;
  s.bloom_cells = n_bits == 0 ? 0 : n_bits / config_.bloom.cell_bits;
  const uint64_t* words = reinterpret_cast<const uint64_t*>(bloom_.data());
  const uint32_t bits = config_.bloom.cell_bits;
  const uint64_t low = bits == 1 ? ~uint64_t{0} : bits == 2 ? 0x5555555555555555ull : 0x1111111111111111ull;
  for (uint64_t i = 0; i < n_bits / 64; ++i) {
    uint64_t any = words[i];  // the low bit of each cell that is not zero
    for (uint32_t b = 1; b < bits; ++b) any |= words[i] >> b & ~uint64_t{0};
    s.bloom_cells_used += static_cast<uint64_t>(__builtin_popcountll(any & low));
  }
  return s;
}

inline void Table::partition_counts(bool candidates, uint64_t* counts) {
  Writer writer(*this);
  if (!candidates) {
    export_order_.prepare(LiveRows{rows()}, write_count_.load(std::memory_order_relaxed));
    for (uint32_t p = 0; p < kPartitions; ++p) counts[p] = export_order_.count(p);
    return;
  }
  std::fill(counts, counts + kPartitions, uint64_t{0});
  index().finish_move();
  index().for_each([&](const Cell& cell) {
    if (is_candidate_word(cell.word)) ++counts[partition_of(cell.bucket->key[cell.slot])];
  });
}

inline uint64_t Table::export_rows(uint32_t first, uint32_t last, uint64_t capacity, const RowArrays& out) {
  require(first <= last && last < kPartitions, "export: partitions are 0..255");
  Writer writer(*this);
  export_order_.prepare(LiveRows{rows()}, write_count_.load(std::memory_order_relaxed));
  uint64_t n = 0;
  for (uint32_t p = first; p <= last; ++p) n += export_order_.count(p);
  require(n <= capacity, "export: the arrays are too short");
  export_order_.sort(LiveRows{rows()}, first, last, static_cast<uint32_t>(ThreadPool::instance().n_threads()));
  const RowSource source = {rows(), kernels_, format(), state_.step_base};
  const bool is_streamed = n * value_bytes(format()) > streamed_from();
  for_ranges(n, [&](uint32_t, uint64_t begin, uint64_t end) {
    copy_whole_rows(source, export_order_.begin(first) + begin, end - begin, is_streamed,
                    arrays_from(out, begin, format()));
  });
  if (last == kPartitions - 1) export_order_.drop();  // whoever reads all of it comes by here last
  return n;
}

inline uint64_t Table::export_candidates(uint32_t first, uint32_t last, uint64_t capacity, int64_t* keys,
                                         uint32_t* counts, int64_t* epochs) {
  require(first <= last && last < kPartitions, "export_candidates: partitions are 0..255");
  Writer writer(*this);
  index().finish_move();
  struct Candidate {
    uint32_t partition;
    int64_t key;
    uint32_t word;
  };
  std::vector<Candidate> found;
  index().for_each([&](const Cell& cell) {
    const uint64_t key = cell.bucket->key[cell.slot];
    const uint32_t p = partition_of(key);
    if (is_candidate_word(cell.word) && p >= first && p <= last)
      found.push_back(Candidate{p, static_cast<int64_t>(key), cell.word});
  });
  require(found.size() <= capacity, "export_candidates: the arrays are too short");
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    return a.partition != b.partition ? a.partition < b.partition : a.key < b.key;
  });
  for (uint64_t i = 0; i < found.size(); ++i) {
    keys[i] = found[i].key;
    counts[i] = candidate_count(found[i].word);
    epochs[i] = candidate_epoch(found[i].word, state_.candidate_epoch);
  }
  return found.size();
}

inline uint64_t Table::evicted_count() {
  Writer writer(*this);
  return evicted_.size();
}

inline void Table::evicted_take(uint64_t capacity, const RowArrays& out) {
  Writer writer(*this);
  require(evicted_.size() <= capacity, "evicted_take: the arrays are too short");
  evicted_.take(format(), out);
}

// By (partition, key): live keys that were written, and removed ones that are absent now.
inline void Table::changes(std::vector<int64_t>* upserted, std::vector<int64_t>* deleted) {
  require(log_.is_on(), "changes: the table was made without track_changes");
  Writer writer(*this);
  rows().for_each(0, rows().n_ids(), [&](uint32_t row, const Meta* meta) {
    if (log_.is_dirty(row)) upserted->push_back(static_cast<int64_t>(meta->key));
  });
  std::sort(upserted->begin(), upserted->end(), is_before_in_files);
  *deleted = log_.removed();
  std::sort(deleted->begin(), deleted->end(), is_before_in_files);
  deleted->erase(std::unique(deleted->begin(), deleted->end()), deleted->end());
  const auto is_live = [&](int64_t key) {
    const uint64_t bits = static_cast<uint64_t>(key);
    return is_row_word(index().find(bits, index().hash(bits)).word);
  };
  deleted->erase(std::remove_if(deleted->begin(), deleted->end(), is_live), deleted->end());
}

inline void Table::changes_reset() {
  Writer writer(*this);
  log_.reset();
}

// What a table of this shape holds at rest, and at the peak of its last growth, when old and new index lie side by
// side.
inline es_plan_report Table::plan(const es_config& config, uint64_t n_rows, uint64_t n_candidates) {
  const Config checked(config);
  const Rows rows(checked.format);
  const uint64_t n_keys = n_rows + n_candidates;
  const uint64_t fixed =
      rows.bytes_after(n_rows) + checked.bloom_bytes() + sizeof(Table) + (config.track_changes != 0 ? n_rows : 0);
  const uint64_t index_bytes = Index::resting_bytes(n_keys);
  return es_plan_report{fixed + index_bytes, fixed + index_bytes + Index::grown_bytes(n_keys)};
}

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_INSPECT_H_
