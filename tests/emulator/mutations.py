"""Faults to plant in the kernels, each with the tests that must notice it.

A `Mutation` replaces text of one or more files. `caught_by` names tests of this folder: a file, or
file::test. With `is_race` they run under ThreadSanitizer, with only Tile.sync, barriers and
acquire/release to order lanes, since x86 and a ballot that waits hide what a card would show.

There is no acquire, release or lock in the engine to leave out: launches on one stream order each
other, keys of a launch are distinct, and cells are claimed before anybody may search for them. What
comes nearest is planted instead: work of two launches done in one (`settle_*`), and operations on
shared words that are not atomic.
"""

from typing import NamedTuple

PROGRAMS = "test_programs.py::test_interleaved_program"
FAST_PROGRAMS = "test_programs.py::test_program"
SNAPSHOTS = "../contract/test_snapshots.py"
HEADERS, SOURCES = "include/embstore/cuda/", "src/cuda/"


class Mutation(NamedTuple):
    name: str
    caught_by: str
    edits: tuple  # of (file, old text, new text)
    is_race: bool = False


def of_header(name, header, old, new, caught_by=PROGRAMS, is_race=False):
    return Mutation(name, caught_by, ((HEADERS + header, old, new),), is_race)


def of_source(name, source, old, new, caught_by=PROGRAMS, is_race=False):
    return Mutation(name, caught_by, ((SOURCES + source, old, new),), is_race)


DEDUP = (
    of_header(
        "a slot of the batch is claimed by a plain store",
        "dedup.h",
        "holder = compare_swap(&slots[slot], kNoPosition, i);",
        "store_relaxed(&slots[slot], i);",
    ),
    of_header(
        "the first position of a key is whoever came first",
        "dedup.h",
        "if (i < holder) fetch_min(&slots[slot], i);",
        "",
    ),
    of_header(
        "the least position is stored, not fetch_min",
        "dedup.h",
        "if (i < holder) fetch_min(&slots[slot], i);",
        "if (i < holder) store_relaxed(&slots[slot], i);",
    ),
    of_header(
        "occurrences wrap at 32 bits",
        "dedup.h",
        "return occurrences > 0xFFFFFFFFull ? 0xFFFFFFFFu : static_cast<uint32_t>(occurrences);",
        "return static_cast<uint32_t>(occurrences);",
        FAST_PROGRAMS,
    ),
    of_source(
        "occurrences are added without an atomic operation",
        "dedup.cu",
        "fetch_add(&a.occurrences[unique], a.counts != nullptr ?",
        "a.occurrences[unique] += (a.counts != nullptr ?",
        is_race=True,
    ),
)

INDEX = (
    of_header(
        "a stale key of an empty cell is found",
        "index.h",
        "if ((first >> pair & 1u) != 0 && low >= kWordFirstRow)",
        "if ((first >> pair & 1u) != 0)",
    ),
    of_header(
        "a cell is claimed by a plain store",
        "index.h",
        "is_mine = compare_swap(&line->word[first + place], kWordEmpty, word) == kWordEmpty;",
        "is_mine = true, store_relaxed(&line->word[first + place], word);",
    ),
    of_header(
        "a key is written to a cell of another's",
        "index.h",
        "if (is_mine) line->key[first + place] = key;",
        "line->key[first + place] = key;",
    ),
    of_header(
        "a bucket that was gone past is not marked",
        "index.h",
        "if (tile.lane() == 0) fetch_or(&line->has_spilled, 1u);",
        "",
    ),
    of_header(
        "a search ends at the mark of the wrong word",
        "index.h",
        "tile.shfl(mine.y >> 32, 7) != 0",
        "tile.shfl(mine.y & 0xFFFFFFFFu, 7) != 0",
    ),
    of_header(
        "the walk leaves the last bucket",
        "index.h",
        "p->line + 1 == p->n_lines ? 0 : p->line + 1",
        "p->line + 1",
    ),
    of_header(
        "lanes with nothing leave a search early",
        "index.h",
        "    const CellOf found = cell_in_line(tile, mine, probe.line, key);",
        "    if (tile.lane() < kKeyLanes && (mine.x | mine.y) == 0) return CellOf{kNoCell, 0};\n"
        "    const CellOf found = cell_in_line(tile, mine, probe.line, key);",
    ),
    of_header(
        "growth forgets candidates",
        "index.h",
        "if (word != kWordEmpty) insert_cell(tile, t, from->key[place], word);",
        "if (is_row_word(word)) insert_cell(tile, t, from->key[place], word);",
    ),
)

INSERT = (
    of_header(
        "cells of the filter wrap",
        "insert.h",
        "const uint32_t kept = sum < most ? sum : most;",
        "const uint32_t kept = sum & most;",
        "test_programs.py::test_a_filter_that_is_too_small_saturates",
    ),
    of_header(
        "cells of the filter are stored, not compared and swapped",
        "insert.h",
        "const uint32_t old = compare_swap(word, seen, next);",
        "const uint32_t old = seen;\n    store_relaxed(word, next);",
    ),
    of_header(
        "frequencies wrap",
        "insert.h",
        "meta->freq = saturating_add(meta->freq, k.occurrences);",
        "meta->freq = meta->freq + k.occurrences;",
        FAST_PROGRAMS,
    ),
    of_header(
        "the last free id is passed over",
        "insert.h",
        "return t.free_rows[n_free - 1 - rank];",
        "return t.free_rows[n_free - rank];",
    ),
    of_source(
        "ids go by numbers, not by ranks", "insert.cu", "a.ranks[u]};", "static_cast<uint32_t>(u)};"
    ),
    of_header(
        "a change of frequency is not logged",
        "insert.h",
        "      note_written(t, k.row);\n",
        "",
        "test_programs.py::test_a_key_that_is_seen_again_is_logged",
    ),
    of_header(
        "a slot too many begins at the accumulator",
        "insert.h",
        "s < t.n_accumulators ?",
        "s <= t.n_accumulators ?",
        FAST_PROGRAMS,
    ),
    of_header(
        "live bits are set without an atomic operation",
        "arena.h",
        "{ fetch_or(&t.live[row / 32], 1u << (row % 32)); }",
        "{ store_relaxed(&t.live[row / 32], load_relaxed(&t.live[row / 32]) | 1u << (row % 32)); }",
    ),
    of_header(
        "live bits are set plainly",
        "arena.h",
        "{ fetch_or(&t.live[row / 32], 1u << (row % 32)); }",
        "{ t.live[row / 32] |= 1u << (row % 32); }",
        is_race=True,
    ),
    Mutation(
        "commit settles the free list that others still read",
        PROGRAMS,
        (
            (
                HEADERS + "insert.h",
                "    write_newborn(tile, t, row, k.key);",
                "    if (tile.lane() == 0 && k.rank < t.counters->n_free)\n"
                "      fetch_add(&t.counters->n_free, ~uint64_t{0});\n"
                "    write_newborn(tile, t, row, k.key);",
            ),
            (SOURCES + "insert.cu", "  c.n_free -= n_reused;\n", ""),
        ),
    ),
    of_source(
        "an ended candidate is still counted",
        "insert.cu",
        "a.tally->n_new_candidates - a.tally->n_ended_candidates",
        "a.tally->n_new_candidates",
        FAST_PROGRAMS,
    ),
    of_source(
        "only the first block commits",
        "insert.cu",
        "  const bool has_counts = a.occurrences != nullptr;",
        "  if (block_number() != 0) return;\n  const bool has_counts = a.occurrences != nullptr;",
        FAST_PROGRAMS,
    ),
    of_header(
        "a thread takes one item",
        "simt.h",
        "{ return static_cast<uint64_t>(n_blocks()) * kBlockThreads; }",
        "{ return uint64_t{1} << 40; }",
        FAST_PROGRAMS,
    ),
    of_source(
        "lanes read the row that another writes",
        "insert.cu",
        "a.status[u] == kFound ? a.rows[u] : kNoRow",
        "a.rows[u]",
        is_race=True,
    ),
)

ORDER = (
    of_header(
        "sums are written while others read the last ones",
        "order.h",
        "  block_barrier();  // nobody reads the sums of the last round any more\n",
        "",
        "test_order.py",
    ),
    of_header(
        "sums are read before all are written",
        "order.h",
        "warp_sums[number] = upto;\n  block_barrier();",
        "warp_sums[number] = upto;",
        "test_order.py",
    ),
    of_header(
        "a share begins where the last one began",
        "order.h",
        "    before += prefix.total;\n",
        "",
        "test_order.py",
    ),
    of_header(
        "equal items of a warp are turned round",
        "order.h",
        "n_bits(same & ((1u << warp.lane()) - 1u));",
        "n_bits(same >> warp.lane() >> 1);",
        "test_order.py",
    ),
    of_header(
        "signed keys are sorted as unsigned",
        "order.h",
        "const uint64_t ordered = key ^ 0x8000000000000000ull;",
        "const uint64_t ordered = key;",
    ),
    of_header(
        "a place moves on while lanes still read it",
        "order.h",
        "    warp.sync();\n    if (has_item && rank == 0)",
        "    if (has_item && rank == 0)",
        "test_order.py",
    ),
    of_header(
        "a place is read before it has moved on",
        "order.h",
        "places[digit] += n_bits(same);\n    warp.sync();",
        "places[digit] += n_bits(same);",
        "test_order.py::test_sort_keeps_equal_words_as_they_come",
        is_race=True,
    ),
    of_header(
        "digits are counted by lanes that do not meet",
        "order.h",
        "counts[digit] += n_bits(same);\n    warp.sync();",
        "counts[digit] += n_bits(same);",
        "test_order.py::test_sort_by_partition",
        is_race=True,
    ),
    of_header(
        "a warp counts before all bins are empty",
        "order.h",
        "shared[w * kDigits + block_thread()] = 0;\n    block_barrier();",
        "shared[w * kDigits + block_thread()] = 0;",
        "test_order.py",
    ),
    of_header(
        "counts are read before all are counted",
        "order.h",
        "shared + number * kDigits);\n    block_barrier();\n    for",
        "shared + number * kDigits);\n    for",
        "test_order.py",
    ),
    of_header(
        "items move before all places are there",
        "order.h",
        "*place_in_table(table, p, at + w);\n    block_barrier();",
        "*place_in_table(table, p, at + w);",
        "test_order.py",
    ),
    of_header(
        "the places of the next segments come too early",
        "order.h",
        "shared + number * kDigits, to);\n    block_barrier();",
        "shared + number * kDigits, to);",
        "test_order.py",
    ),
)

SETS = (
    of_header(
        "a row is dropped from a set without an atomic operation",
        "row_bits.h",
        "(fetch_and(word, ~bit) & bit) != 0;",
        "(store_relaxed(word, load_relaxed(word) & ~bit), true);",
        "test_evict.py",
    ),
    of_header(
        "a count is added plainly",
        "row_bits.h",
        "n != 0) fetch_add(count, n);",
        "n != 0) *count += n;",
        "test_evict.py::test_base_advances",
        is_race=True,
    ),
    of_header(
        "a bin is added to plainly",
        "row_bits.h",
        "if (is_counted && bin != common) fetch_add(&bins[bin], 1u);",
        "if (is_counted && bin != common) ++bins[bin];",
        "test_evict.py::test_keep_first",
        is_race=True,
    ),
    of_header(
        "bytes are counted before all bins are empty",
        "row_bits.h",
        "  bins[block_thread()] = 0;\n  block_barrier();",
        "  bins[block_thread()] = 0;",
        "test_evict.py",
    ),
    of_header(
        "bins are read before all are counted",
        "row_bits.h",
        "  block_barrier();\n  const uint32_t n = bins[block_thread()];",
        "  const uint32_t n = bins[block_thread()];",
        "test_evict.py",
    ),
    of_header(
        "rows beyond the end of a range are in it",
        "row_bits.h",
        "return n >= kWordRows ? 0xFFFFFFFFu : (1u << n) - 1;",
        "return 0xFFFFFFFFu | static_cast<uint32_t>(n);",
        "test_evict.py",
    ),
)

EVICTION = (
    of_header("a row that left still lives", "evict.h", "    set_dead(t, row);\n", ""),
    of_header(
        "a row that left is still logged",
        "evict.h",
        "    note_gone(t, row);\n",
        "",
        "test_evict.py",
    ),
    of_header(
        "the free list has a hole",
        "evict.h",
        "t.free_rows[t.counters->n_free + i] = row;",
        "t.free_rows[t.counters->n_free + i + 1] = row;",
    ),
    of_header(
        "removed keys overwrite the log",
        "evict.h",
        "t.removed_keys[t.counters->n_log + i] =",
        "t.removed_keys[i] =",
    ),
    of_header(
        "the last of the n least stays out",
        "evict.h",
        "rank.key > limit.key;",
        "rank.key >= limit.key;",
        "test_evict.py",
    ),
    of_header(
        "a word is written while lanes still read it",
        "evict.h",
        "    warp.sync();  // all have read the word\n",
        "",
        "test_evict.py::test_keep_first",
        is_race=True,
    ),
    of_header(
        "a candidate is dropped twice",
        "evict.h",
        "n_dropped += exchange(word_at(t, cells[i]), kWordEmpty) != kWordEmpty;",
        "free_cell(t, cells[i]), ++n_dropped;",
        "test_evict.py",
    ),
    of_header(
        "columns of a norm are added twice",
        "evict.h",
        "column += kRowPartials) {\n    const float x",
        "column += 8) {\n    const float x",
        "test_evict.py",
    ),
    Mutation(
        "removal settles the counters that others still read",
        PROGRAMS,
        (
            (
                HEADERS + "evict.h",
                "    if (cells[i] != kNoCell) free_cell(t, cells[i]);\n",
                "    if (cells[i] != kNoCell) free_cell(t, cells[i]);\n"
                "    if (i == 0) fetch_add(&t.counters->n_free, n);\n",
            ),
            (HEADERS + "evict.h", "  c->n_free += n;\n", ""),
        ),
    ),
    of_header(
        "steps before the base wrap",
        "upkeep.h",
        "meta->step = is_clamped ? 0 : meta->step - static_cast<uint32_t>(by);",
        "meta->step = meta->step - static_cast<uint32_t>(by);",
        "test_evict.py",
    ),
    of_header(
        "halved frequencies are not logged",
        "upkeep.h",
        "t.dirty[row / kWordRows] |= t.live[row / kWordRows];",
        "t.dirty[row / kWordRows] |= 0u;",
        "test_evict.py",
    ),
)

TRAINING = (
    of_header(
        "duplicates are added from left to right",
        "gradients.h",
        "addends_of(g, runs, partials, start, n_rows, block_depth(n_rows) + 1, 0);",
        "Addends{runs.order + start, partials, static_cast<uint32_t>(n_rows)};",
        "test_gradients.py",
    ),
    of_header(
        "partial sums of neighbours overlap",
        "gradients.h",
        "return before + 2 * (start >> (kBlockShift * level));",
        "return before + (start >> (kBlockShift * level));",
        "test_gradients.py",
    ),
    of_header(
        "levels of partial sums overlap",
        "gradients.h",
        "before += 2 * (n >> (kBlockShift * below));",
        "before += n >> (kBlockShift * below);",
        "test_gradients.py",
    ),
    of_header(
        "sums of neighbours overlap",
        "gradients.h",
        "store_floats(sums + start / 2 * g.dim + column, sum, n);",
        "store_floats(sums + start / 3 * g.dim + column, sum, n);",
        "test_gradients.py",
    ),
    of_header(
        "each thread of a key counts its bad sum",
        "gradients.h",
        "if (exchange(is_bad, 1u) != 0) return;",
        "store_relaxed(is_bad, 1u);",
        "test_update.py",
    ),
    Mutation(
        "a product is added without being rounded",
        "test_update.py",
        (
            (
                "include/embstore/core/optimizer.h",
                "w[j] = w[j] - rate * g[j];",
                "w[j] = __builtin_fmaf(-rate, g[j], w[j]);",
            ),
        ),
    ),
    of_header(
        "an older step replaces a row's",
        "update.h",
        "if (meta->step < step) meta->step = step;",
        "meta->step = step;",
    ),
    of_header(
        "a ticket's row is taken for its key's",
        "update.h",
        "is_live(t, row) && meta_of(t, row)->key == key;",
        "is_live(t, row) && (meta_of(t, row)->key == key || true);",
        "test_update.py",
    ),
    of_header(
        "all steps round by the same words",
        "update.h",
        "Purpose::kRounding, column / 4, u.t);",
        "Purpose::kRounding, column / 4, 0);",
        "test_update.py",
    ),
    of_header(
        "the slot of a row is written while lanes still read it",
        "update.h",
        "    tile.sync();  // all have read the slot\n",
        "",
        "test_update.py::test_each_optimizer_in_any_interleaving",
        is_race=True,
    ),
    of_source(
        "the last of equal keys is whoever came last",
        "update.cu",
        "fetch_max(&a.last[a.inverse[i]], static_cast<uint32_t>(i));",
        "store_relaxed(&a.last[a.inverse[i]], static_cast<uint32_t>(i));",
        "test_update.py",
    ),
    of_header(
        "bags are added from left to right",
        "pooling.h",
        "  const uint64_t n_blocks = (size - 1) / kReduceBlock + 1;\n",
        "  const uint64_t n_blocks = 1, kReduceBlock = ~uint64_t{0};\n",
        "test_pooling.py",
    ),
    of_header(
        "bags read a default row that is not rounded",
        "pooling.h",
        "default_quad(t, column, n)",
        "load_floats(t.default_row + column, n)",
        "test_pooling.py",
    ),
)

TRANSFER = (
    of_header(
        "imported steps before the base wrap",
        "transfer.h",
        "meta->step = is_clamped ? 0 : static_cast<uint32_t>(step - t.step_base);",
        "meta->step = static_cast<uint32_t>(step - t.step_base);",
        "test_transfer.py",
    ),
    of_header(
        "a key that was removed twice is told twice",
        "transfer.h",
        "i == 0 || keys[i] != keys[i - 1];",
        "true;",
        "test_transfer.py",
    ),
    of_header(
        "an image of a snapshot is written again",
        "snapshot.h",
        "if (tile.lane() == 0 && drop_row(cut->waiting, row)) number",
        "if (tile.lane() == 0 && has_bit(cut->waiting[row / kWordRows], row % kWordRows)) number",
        SNAPSHOTS,
    ),
    of_header(
        "a snapshot reads records that were halved meanwhile",
        "snapshot.h",
        "return cut.frozen != nullptr ? cut.frozen[row] : *meta_of(t, row);",
        "return (void)cut, *meta_of(t, row);",
        SNAPSHOTS,
    ),
    of_source(
        "the first key that is missing is whichever came last",
        "gather.cu",
        "fetch_min(a.first_missing, i);",
        "store_relaxed(a.first_missing, i);",
        "test_engines.py",
    ),
)

MUTATIONS = (*DEDUP, *INDEX, *INSERT, *ORDER, *SETS, *EVICTION, *TRAINING, *TRANSFER)
