// A batch's distinct keys, and where each occurrence went.
//
// 1. A big batch is split by the keys' hashes into parts that different threads work on; how many there are depends on
//    the number of threads.
// 2. Part p numbers its distinct keys from parts[p].first on, in order of first occurrence. With several parts some
//    numbers up to n are nobody's.
// 3. What a user can see goes by the order of first occurrence in the batch: sort_by_first().
#ifndef EMBSTORE_CPU_DEDUP_H_
#define EMBSTORE_CPU_DEDUP_H_

#include <cstring>

#include "index.h"
#include "kernels.h"
#include "ranges.h"

namespace embstore::cpu {

struct DistinctPart {
  uint64_t first;  // the number of its first distinct key; and where its positions begin in `order`
  uint64_t n;      // positions
  uint64_t n_unique;

  uint64_t end() const { return first + n_unique; }
};

// What the backward pass needs too. Arrays of distinct keys are indexed by their numbers.
struct Distinct {
  Scratch<uint64_t> keys;
  Scratch<uint32_t> n_positions;  // how many positions of the batch hold the key
  Scratch<uint32_t> first;        // the first of them
  Scratch<uint32_t> inverse;      // (n,) the number of each position's key
  Scratch<uint32_t> order;        // (n,) positions, part after part, ascending in each; empty if there is one part
  Scratch<DistinctPart> parts;
  Scratch<uint64_t> marks;  // of sort_by_first
  uint64_t n_unique = 0;

  uint64_t n() const { return inverse.size(); }
  uint32_t n_parts() const { return static_cast<uint32_t>(parts.size()); }
  uint64_t bytes() const {
    return keys.bytes() + n_positions.bytes() + first.bytes() + inverse.bytes() + order.bytes() + parts.bytes() +
           marks.bytes();
  }

  // run(number of the part, part) on all threads.
  template <class Run>
  void in_parallel(const Run& run) const {
    ThreadPool::instance().run(n_parts(), [&](uint32_t p) { run(p, parts[p]); });
  }

  // visit(position) for those of a part, ascending.
  template <class Visit>
  void for_each_position(const DistinctPart& part, const Visit& visit) const {
    for (uint64_t i = part.first; i < part.first + part.n; ++i)
      visit(order.size() > 0 ? order[i] : static_cast<uint32_t>(i));
  }

  // Distinct keys that are in order within their parts, part after part: afterwards in order of first occurrence.
  void sort_by_first(uint32_t* uniques, uint64_t n_sorted) {
    if (n_parts() <= 1 || n_sorted <= 1) return;
    const uint64_t n_words = (n() + 63) / 64;
    marks.resize(n_words);
    std::memset(marks.data(), 0, n_words * sizeof(uint64_t));
    for (uint64_t i = 0; i < n_sorted; ++i) marks[first[uniques[i]] / 64] |= uint64_t{1} << (first[uniques[i]] % 64);
    for (uint64_t word = 0; word < n_words; ++word)
      for (uint64_t bits = marks[word]; bits != 0; bits &= bits - 1)
        *uniques++ = inverse[word * 64 + static_cast<uint64_t>(__builtin_ctzll(bits))];
  }
};

// What the call at work needs of each distinct key.
struct Lookup {
  Scratch<uint64_t> hashes;
  Scratch<Cell> cells;
  Scratch<uint32_t> counted;              // room for `occurrences`
  const uint32_t* occurrences = nullptr;  // sum of counts, saturating
  uint64_t layout = 0;                    // of the index when the cells were found

  uint64_t bytes() const { return hashes.bytes() + cells.bytes() + counted.bytes(); }
};

// Distinct keys by hash tables of its own, each key looked up in the index on the way. Belongs to one writer.
class Dedup {
 public:
  static constexpr uint32_t kMostParts = 256;

  // counts (n,) may be null: one each.
  void run(const Kernels& kernels, const Index& index, const int64_t* keys, uint64_t n, const uint32_t* counts,
           uint32_t n_parts, Distinct* out, Lookup* lookup) {
    DedupContext c = {};
    c.view = index.view();
    c.hash_keys = index.hash_keys();
    c.keys = keys;
    c.n = n;
    c.counts = counts;
    c.out_keys = out->keys.resize(n);
    c.out_hashes = lookup->hashes.resize(n);
    c.out_first = out->first.resize(n);
    c.out_n_positions = out->n_positions.resize(n);
    c.out_occurrences = counts != nullptr ? lookup->counted.resize(n) : nullptr;
    c.out_inverse = out->inverse.resize(n);
    c.out_cells = lookup->cells.resize(n);
    split(kernels, c, n_parts, out);
    run_parts(kernels, c, out);
    lookup->occurrences = counts != nullptr ? lookup->counted.data() : out->n_positions.data();
    lookup->layout = index.layout();
  }

  // The same for keys that are known to be distinct: nothing is searched for but their cells.
  static void run_distinct(const Kernels& kernels, const Index& index, const int64_t* keys, uint64_t n, Distinct* out,
                           Lookup* lookup) {
    out->keys.resize(n);
    out->first.resize(n);
    out->n_positions.resize(n);
    out->inverse.resize(n);
    out->order.resize(0);
    out->parts.resize(1)[0] = DistinctPart{0, n, n};
    out->n_unique = n;
    lookup->hashes.resize(n);
    lookup->cells.resize(n);
    for_ranges(n, [&](uint32_t, uint64_t begin, uint64_t end) {
      for (uint64_t i = begin; i < end; ++i) {
        out->keys[i] = static_cast<uint64_t>(keys[i]);
        out->first[i] = out->inverse[i] = static_cast<uint32_t>(i);
        out->n_positions[i] = 1;
        lookup->hashes[i] = index.hash(out->keys[i]);
      }
      kernels.find_cells(index.view(), out->keys.data() + begin, lookup->hashes.data() + begin, end - begin,
                         lookup->cells.data() + begin);
    });
    lookup->occurrences = out->n_positions.data();
    lookup->layout = index.layout();
  }

  uint64_t bytes() const { return slots_.bytes() + part_of_.bytes() + next_.bytes(); }

 private:
  // Which positions are whose: counted, then listed, by ranges of positions.
  void split(const Kernels& kernels, const DedupContext& c, uint32_t n_parts, Distinct* out) {
    DistinctPart* const parts = out->parts.resize(n_parts);
    parts[0] = DistinctPart{0, c.n, 0};
    out->order.resize(n_parts > 1 ? c.n : 0);
    if (n_parts == 1) return;
    const uint32_t n_ranges = n_parts_for(c.n);
    part_of_.resize(c.n);
    next_.resize(uint64_t{n_ranges} * n_parts);
    std::memset(next_.data(), 0, next_.size() * sizeof(uint32_t));
    for_ranges(c.n, n_ranges, [&](uint32_t range, uint64_t first, uint64_t end) {
      kernels.split_keys(c.hash_keys, c.keys + first, end - first, n_parts, &next_[uint64_t{range} * n_parts],
                         part_of_.data() + first);
    });
    uint32_t at = 0;
    for (uint32_t part = 0; part < n_parts; ++part) {
      parts[part].first = at;
      for (uint32_t range = 0; range < n_ranges; ++range)
        at += std::exchange(next_[uint64_t{range} * n_parts + part], at);
      parts[part].n = at - parts[part].first;
    }
    for_ranges(c.n, n_ranges, [&](uint32_t range, uint64_t first, uint64_t end) {
      uint32_t* const next = &next_[uint64_t{range} * n_parts];
      for (uint64_t i = first; i < end; ++i) out->order[next[part_of_[i]]++] = static_cast<uint32_t>(i);
    });
  }

  void run_parts(const Kernels& kernels, const DedupContext& whole, Distinct* out) {
    DistinctPart* const parts = out->parts.data();
    uint64_t n_slots = 0;
    for (uint32_t part = 0; part < out->n_parts(); ++part) n_slots += slots_for(parts[part].n);
    slots_.resize(n_slots);
    out->in_parallel([&](uint32_t number, const DistinctPart& part) {
      DedupContext c = whole;
      uint64_t first_slot = 0;
      for (uint32_t before = 0; before < number; ++before) first_slot += slots_for(parts[before].n);
      c.slots = slots_.data() + first_slot;
      c.n_slots = slots_for(part.n);
      std::memset(c.slots, 0, c.n_slots * sizeof(uint32_t));
      c.order = out->order.size() > 0 ? out->order.data() + part.first : nullptr;
      c.n = part.n;
      c.first_number = static_cast<uint32_t>(part.first);
      c.out_keys += part.first;
      c.out_hashes += part.first;
      c.out_first += part.first;
      c.out_n_positions += part.first;
      if (c.out_occurrences != nullptr) c.out_occurrences += part.first;
      c.out_cells += part.first;
      parts[number].n_unique = kernels.dedup(c);
    });
    out->n_unique = 0;
    for (uint32_t part = 0; part < out->n_parts(); ++part) out->n_unique += parts[part].n_unique;
  }

  static uint64_t slots_for(uint64_t n) {
    uint64_t n_slots = 64;
    while (n_slots < 2 * n + 2) n_slots *= 2;
    return n_slots;
  }

  Scratch<uint32_t> slots_;
  Scratch<uint8_t> part_of_;  // (n,) by position
  Scratch<uint32_t> next_;    // (ranges, parts)
};

}  // namespace embstore::cpu

#endif  // EMBSTORE_CPU_DEDUP_H_
