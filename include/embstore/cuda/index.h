// The index: eight lanes read a bucket of ten cells, one cache line, in one request.
//
// 1. A key lies in its first bucket, in its second (another hash), or in those that follow the second (not in a cache).
//    Every bucket that a key goes past is marked as spilled, so a search ends at the first that is not.
// 2. A cell that is given back is empty at once: no search ends at an empty cell.
// 3. insert_cell is for keys that are distinct in the launch and absent before it; cells are claimed by compare_swap of
//    their words, so no locks are needed (docs/decisions/007).
// All lanes of a tile call these together, with the same key.
#ifndef EMBSTORE_CUDA_INDEX_H_
#define EMBSTORE_CUDA_INDEX_H_

#include "table.h"

namespace embstore::cuda {

EMB_CONST uint32_t kKeyLanes = 5;  // the first lanes of a tile hold two keys each, the others words
EMB_CONST uint64_t kNoCell = 0xFFFFFFFFFFFFFFFFull;

using IndexTile = Tile<8>;

// The buckets that a key may lie in, one after another.
struct Probe {
  uint64_t hash;
  uint64_t n_lines;
  uint64_t line;
  uint64_t n_passed;
  uint64_t most_passed;  // with one more, all have been seen
};

EMB_DEVICE Probe probe_of(const TableView& t, uint64_t key) {
  const uint64_t hash = keyed_hash(key, hash_keys_of(t));
  return Probe{hash, t.n_lines, bucket_of(hash, t.n_lines), 0, t.is_cache != 0 ? 0 : t.n_lines};
}

EMB_DEVICE void advance(Probe* p) {
  const uint64_t following = p->line + 1 == p->n_lines ? 0 : p->line + 1;
  p->line = p->n_passed == 0 ? bucket_of(fixed_hash(p->hash), p->n_lines) : following;
  ++p->n_passed;
}

EMB_DEVICE bool has_seen_all(const Probe& p) { return p.n_passed > p.most_passed; }

struct CellOf {
  uint64_t cell;  // line * kCells + place, or kNoCell
  uint32_t word;  // kWordEmpty without a cell
};

// Two neighbouring words, of cells 2 * pair and 2 * pair + 1, out of the lanes that hold them.
EMB_DEVICE uint64_t words_of_pair(const IndexTile& tile, const Pair& mine, uint32_t pair) {
  const uint32_t from = kKeyLanes + pair / 2;
  return tile.shfl(pair % 2 == 0 ? mine.x : mine.y, from);
}

// The key's cell in a bucket of which each lane holds 16 bytes. Stale keys lie in empty cells: the word decides.
EMB_DEVICE CellOf cell_in_line(const IndexTile& tile, const Pair& mine, uint64_t line, uint64_t key) {
  const bool has_keys = tile.lane() < kKeyLanes;
  const uint32_t first = tile.ballot(has_keys && mine.x == key);
  const uint32_t second = tile.ballot(has_keys && mine.y == key);
  for (uint32_t lanes = first | second; lanes != 0; lanes &= lanes - 1) {
    const uint32_t pair = first_bit(lanes);
    const uint64_t words = words_of_pair(tile, mine, pair);
    const uint32_t low = static_cast<uint32_t>(words), high = static_cast<uint32_t>(words >> 32);
    if ((first >> pair & 1u) != 0 && low >= kWordFirstRow) return CellOf{line * kCells + 2 * pair, low};
    if ((second >> pair & 1u) != 0 && high >= kWordFirstRow) return CellOf{line * kCells + 2 * pair + 1, high};
  }
  return CellOf{kNoCell, kWordEmpty};
}

EMB_DEVICE CellOf find_cell(const IndexTile& tile, const TableView& t, uint64_t key) {
  for (Probe probe = probe_of(t, key);; advance(&probe)) {
    const Pair mine = load16(reinterpret_cast<const char*>(t.lines + probe.line) + 16 * tile.lane());
    const CellOf found = cell_in_line(tile, mine, probe.line, key);
    if (found.cell != kNoCell) return found;
    const bool has_spilled = tile.shfl(mine.y >> 32, 7) != 0;
    if (!has_spilled || has_seen_all(probe)) return found;
  }
}

EMB_DEVICE uint32_t* word_at(const TableView& t, uint64_t cell) { return &t.lines[cell / kCells].word[cell % kCells]; }
EMB_DEVICE uint64_t key_at(const TableView& t, uint64_t cell) { return t.lines[cell / kCells].key[cell % kCells]; }

// Gives a key that has none a cell; not in a cache. The host has seen to it that there are cells enough.
EMB_DEVICE void insert_cell(const IndexTile& tile, const TableView& t, uint64_t key, uint32_t word) {
  for (Probe probe = probe_of(t, key); !has_seen_all(probe); advance(&probe)) {
    Line* const line = t.lines + probe.line;
    for (uint32_t first = 0; first < kCells; first += 8) {
      const uint32_t cell = first + tile.lane();
      const bool is_free = cell < kCells && load_relaxed(&line->word[cell]) == kWordEmpty;
      for (uint32_t free = tile.ballot(is_free); free != 0; free &= free - 1) {
        const uint32_t place = first_bit(free);
        bool is_mine = false;
        if (tile.lane() == place) {
          is_mine = compare_swap(&line->word[first + place], kWordEmpty, word) == kWordEmpty;
          if (is_mine) line->key[first + place] = key;
        }
        if (tile.any(is_mine)) return;
      }
    }
    if (tile.lane() == 0) fetch_or(&line->has_spilled, 1u);
  }
}

EMB_DEVICE void free_cell(const TableView& t, uint64_t cell) { store_relaxed(word_at(t, cell), kWordEmpty); }

// Puts the cells of an older index that lie in one of its buckets into the table's.
EMB_DEVICE void move_line(const IndexTile& tile, const TableView& t, const Line* from) {
  for (uint32_t place = 0; place < kCells; ++place) {
    const uint32_t word = from->word[place];
    if (word != kWordEmpty) insert_cell(tile, t, from->key[place], word);
  }
}

}  // namespace embstore::cuda

#endif  // EMBSTORE_CUDA_INDEX_H_
