// A cache of fixed capacity: a new key takes a free cell of its two buckets, or the cell and the row of the least by
// (score, key) in them.
//
// 1. A key lies in its first or in its second bucket (TableView::is_cache), and the index never grows.
// 2. claim_cells changes the words of cells to kWordClaimed, and no row: what goes can be read until write_birth, which
//    is of a later launch. Neither rows in `spared` (those of the batch, pins) nor claimed cells are victims.
// 3. The first new keys by rank, as many as there are rows to spare, may take free cells: so there are never more than
//    max_rows rows, and which key may does not depend on the interleaving. Which victim it gets does, where two new
//    keys have a bucket in common.
// 4. Scores are those of before the batch: no record changes in the launch that reads them.
// 5. place_key, of imports, changes a bucket under its lock and holds one lock at a time. No search runs meanwhile.
// All lanes of a tile call these together, with the same key.
#ifndef EMBSTORE_CUDA_CACHE_H_
#define EMBSTORE_CUDA_CACHE_H_

#include "evict.h"
#include "insert.h"

namespace embstore::cuda {

EMB_CONST uint32_t kWordClaimed = 2;       // of a cell whose row is about to be written
EMB_CONST uint32_t kChoices = 2 * kCells;  // cells that a key may lie in
EMB_CONST uint32_t kMostMoves = 256;       // of other keys, to place one
EMB_CONST uint64_t kNoScore = 1ull << 32;

// What the new keys of a batch, or an import, come to.
struct CacheTally {
  uint64_t n_from_free;  // took a free cell
  uint64_t n_evicted;    // took a row's
  uint64_t n_homeless;   // rows that an import found no cell for
};

// Keys that nobody evicts, where a captured graph finds them anew.
struct PinnedKeys {
  const int64_t* keys;
  uint64_t n;
};

struct Buckets {
  uint64_t first;
  uint64_t second;
};

EMB_DEVICE Buckets buckets_of(const TableView& t, uint64_t key) {
  Probe probe = probe_of(t, key);
  const uint64_t first = probe.line;
  advance(&probe);
  return Buckets{first, probe.line};
}

// Cell number `choice` of those of both.
EMB_DEVICE uint64_t cell_of(const Buckets& b, uint32_t choice) {
  return choice < kCells ? b.first * kCells + choice : b.second * kCells + choice - kCells;
}

EMB_DEVICE void mark_spilled(const TableView& t, uint64_t line) {
  if (load_relaxed(&t.lines[line].has_spilled) == 0) fetch_or(&t.lines[line].has_spilled, 1u);
}

// ---- what a new key takes

struct Claim {
  uint64_t cell;    // kNoCell: the key is refused
  uint32_t victim;  // kNoRow: the cell was free
};

// Whether the tile has turned a cell's word into a claim.
EMB_DEVICE bool has_claimed(const IndexTile& tile, const TableView& t, uint64_t cell, uint32_t word) {
  const bool is_mine = tile.lane() == 0 && compare_swap(word_at(t, cell), word, kWordClaimed) == word;
  return tile.any(is_mine);
}

EMB_DEVICE uint64_t claim_free_cell(const IndexTile& tile, const TableView& t, const Buckets& b) {
  for (uint32_t at = 0; at < kChoices; at += 8) {
    const uint32_t mine = at + tile.lane();
    const bool is_free = mine < kChoices && load_relaxed(word_at(t, cell_of(b, mine))) == kWordEmpty;
    for (uint32_t free = tile.ballot(is_free); free != 0; free &= free - 1) {
      const uint64_t cell = cell_of(b, at + first_bit(free));
      if (has_claimed(tile, t, cell, kWordEmpty)) return cell;
    }
  }
  return kNoCell;
}

// A row that may go.
struct Choice {
  uint64_t score;  // kNoScore: none
  uint64_t key;    // its sign turned over
  uint64_t cell;
  uint32_t word;
};

EMB_DEVICE Choice earlier_of(const Choice& a, const Choice& b) {
  const bool is_b = b.score != a.score ? b.score < a.score : b.key < a.key;
  return is_b ? b : a;
}

EMB_DEVICE Choice choice_at(const TableView& t, uint64_t cell, const uint32_t* spared, bool is_by_freq) {
  const uint32_t word = load_relaxed(word_at(t, cell));
  if (!is_row_word(word)) return Choice{kNoScore, 0, cell, word};
  const uint32_t row = row_of_word(word);
  if (has_bit(spared[row / kWordRows], row % kWordRows)) return Choice{kNoScore, 0, cell, word};
  const Rank rank = rank_of(t, row, is_by_freq ? RankBy::kFreq : RankBy::kStep);
  return Choice{rank.score, rank.key, cell, word};
}

// The least of the rows in both buckets that may go, the same for all lanes.
EMB_DEVICE Choice least_choice(const IndexTile& tile, const TableView& t, const Buckets& b, const uint32_t* spared,
                               bool is_by_freq) {
  Choice least = {kNoScore, 0, kNoCell, kWordEmpty};
  for (uint32_t i = tile.lane(); i < kChoices; i += 8)
    least = earlier_of(least, choice_at(t, cell_of(b, i), spared, is_by_freq));
  for (uint32_t by = 4; by > 0; by /= 2)
    least = earlier_of(least, Choice{tile.shfl_xor(least.score, by), tile.shfl_xor(least.key, by),
                                     tile.shfl_xor(least.cell, by), tile.shfl_xor(least.word, by)});
  return least;
}

EMB_DEVICE Claim claim_victim(const IndexTile& tile, const TableView& t, const Buckets& b, const uint32_t* spared,
                              bool is_by_freq) {
  for (;;) {  // each turn that fails has seen another key's claim: there are kChoices at most
    const Choice least = least_choice(tile, t, b, spared, is_by_freq);
    if (least.score == kNoScore) return Claim{kNoCell, kNoRow};
    if (has_claimed(tile, t, least.cell, least.word)) return Claim{least.cell, row_of_word(least.word)};
  }
}

EMB_DEVICE Claim claim_cell(const IndexTile& tile, const TableView& t, uint64_t key, bool may_take_free,
                            const uint32_t* spared, bool is_by_freq) {
  const Buckets b = buckets_of(t, key);
  Claim claim = {kNoCell, kNoRow};
  if (may_take_free) claim.cell = claim_free_cell(tile, t, b);
  if (claim.cell == kNoCell) claim = claim_victim(tile, t, b, spared, is_by_freq);
  if (tile.lane() == 0 && claim.cell != kNoCell && claim.cell / kCells != b.first) mark_spilled(t, b.first);
  return claim;
}

// ---- births

struct Birth {
  uint64_t key;
  uint64_t cell;
  uint32_t victim;      // kNoRow: a free row
  uint32_t free_place;  // among the births that take free rows
  uint32_t gone_place;  // among those that take victims'
  uint32_t step;
  uint32_t freq;
};

EMB_DEVICE uint32_t write_birth(const IndexTile& tile, const TableView& t, const Birth& birth) {
  const bool is_reused = birth.victim != kNoRow;
  const uint32_t row = is_reused ? birth.victim : new_row_id(t, birth.free_place);
  write_newborn(tile, t, row, birth.key);
  if (tile.lane() != 0) return row;
  if (is_reused && t.removed_keys != nullptr)
    t.removed_keys[t.counters->n_log + birth.gone_place] = static_cast<int64_t>(meta_of(t, row)->key);
  write_record(t, row, birth.key, birth.step, birth.freq);
  t.lines[birth.cell / kCells].key[birth.cell % kCells] = birth.key;
  store_relaxed(word_at(t, birth.cell), word_of_row(row));
  return row;
}

// Counts what a batch came to; of `batch`, those refused were counted as new.
EMB_DEVICE void settle_births(const TableView& t, const Tally& batch, const CacheTally& cache) {
  Counters* const c = t.counters;
  const uint64_t n_free = cache.n_from_free < c->n_free ? cache.n_from_free : c->n_free;
  const uint64_t n_born = cache.n_from_free + cache.n_evicted;
  c->n_free -= n_free;
  c->n_ids += cache.n_from_free - n_free;
  c->n_live += cache.n_from_free;
  c->n_inserted += n_born;
  c->n_evicted += cache.n_evicted;
  c->n_removals += cache.n_evicted;
  if (t.removed_keys != nullptr) c->n_log += cache.n_evicted;
  c->n_refused += batch.n_new_rows - n_born;
  c->n_bloom_added += batch.n_first_seen;
}

// ---- imports

EMB_DEVICE void lock_line(const IndexTile& tile, Line* line) {
  if (tile.lane() == 0) {
    while (compare_swap(&line->lock, 0u, 1u) != 0) {
    }
    load_acquire(&line->lock);
  }
  tile.sync();
}

EMB_DEVICE void unlock_line(const IndexTile& tile, Line* line) {
  tile.sync();
  if (tile.lane() == 0) store_release(&line->lock, 0u);
}

struct Cell {
  uint64_t key;
  uint32_t word;
};

// Puts a key into a free cell of a bucket, or, with `may_displace`, into cell number `otherwise`. What lay there; the
// key itself where it found no place.
EMB_DEVICE Cell put_into_line(const IndexTile& tile, Line* line, const Cell& mine, bool may_displace,
                              uint32_t otherwise) {
  lock_line(tile, line);
  const uint32_t low = tile.ballot(load_relaxed(&line->word[tile.lane()]) == kWordEmpty);
  const uint32_t high = tile.ballot(tile.lane() < kCells - 8 && load_relaxed(&line->word[8 + tile.lane() % 2]) == 0);
  const uint32_t free = low | high << 8;
  const uint32_t place = free != 0 ? first_bit(free) : otherwise;
  Cell old = mine;
  if (tile.lane() == 0 && (free != 0 || may_displace)) {
    old = Cell{load_relaxed(&line->key[place]), load_relaxed(&line->word[place])};
    store_relaxed(&line->key[place], mine.key);
    store_relaxed(&line->word[place], mine.word);
  }
  unlock_line(tile, line);
  return Cell{tile.shfl(old.key, 0), tile.shfl(old.word, 0)};
}

// Gives a key that has none a cell, for which others move to their other bucket. The row that is left without one:
// kNoRow, or, where there is no room, that of the key or of another.
EMB_DEVICE uint32_t place_key(const IndexTile& tile, const TableView& t, uint64_t key, uint32_t row) {
  Cell mine = {key, word_of_row(row)};
  Buckets b = buckets_of(t, key);
  mine = put_into_line(tile, t.lines + b.first, mine, false, 0);
  uint64_t line = b.second;
  for (uint32_t n = 0; n < kMostMoves && is_row_word(mine.word); ++n) {
    if (tile.lane() == 0 && line != b.first) mark_spilled(t, b.first);
    const uint32_t otherwise = static_cast<uint32_t>(fixed_hash(mine.key + n) % kCells);
    mine = put_into_line(tile, t.lines + line, mine, true, otherwise);
    b = buckets_of(t, mine.key);
    line = line == b.first ? b.second : b.first;
  }
  return is_row_word(mine.word) ? row_of_word(mine.word) : kNoRow;
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_CACHE_H_
