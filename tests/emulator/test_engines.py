"""The CPU engine and the CUDA engine, told the same: equal to the bit, checkpoints exchanged."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from property.configs import by_generator, config_of
from property.pair import assert_same, assert_same_rows, exported
from property.program import floats_of, keys_of

import embstore as es

N_TORTURE_PROGRAMS = 150
BATCH_FIELDS = ("rows", "keys", "status", "inverse")


class Both:
    """The same calls on two tables of one configuration, `cpu` and `cuda`."""

    def __init__(self, seed, batch_keys=150, spread=400):
        self.rng = np.random.default_rng(seed)
        self.choose = by_generator(self.rng)
        self.config = config_of(self.choose)
        self.batch_keys, self.spread, self.step = batch_keys, spread, 0
        self.evicted = {engine: [] for engine in ("cpu", "cuda")}
        self.tables = [self.table_of(engine) for engine in self.evicted]
        self._folder = tempfile.TemporaryDirectory()
        self.folders = [Path(self._folder.name) / engine for engine in self.evicted]

    def table_of(self, engine):
        return es.Table(device=engine, on_evict=self.evicted[engine].append, **self.config)

    def close(self):
        for table in self.tables:
            table.close()
        self._folder.cleanup()

    def call(self, verb, *args, **kwargs):
        """Call a verb of both; return both results, or None if both raised the same."""
        results = []
        for place, table in enumerate(self.tables):
            own = [arg[place] if isinstance(arg, tuple) else arg for arg in args]
            try:
                results.append(getattr(table, verb)(*own, **kwargs))
            except es.EmbstoreError as error:
                results.append(error)
        errors = [type(r) if isinstance(r, Exception) else None for r in results]
        assert errors[0] is errors[1], f"{verb}: {results}"
        if errors[0] is None:
            return tuple(results)
        assert str(results[1]) == str(results[0])
        return None

    # ---- operations

    def keys(self):
        n = self.choose([0, 1, 30, self.batch_keys])
        return keys_of(self.rng, n, self.spread)

    def now(self):
        self.step += self.choose([0, 1, 1, 2, 5, 40])
        if self.rng.random() < 0.01:
            self.step += 2**32
        return self.step

    def floats(self, n):
        return floats_of(self.rng, n, self.config["dim"], self.rng.random() < 0.05)

    def insert_and_train(self):
        keys = self.keys()
        counts = self.choose([None, self.rng.integers(0, 4, len(keys)).astype(np.uint32)])
        batches = self.call("find_or_insert", keys, self.now(), counts=counts)
        if batches is None:
            return
        for name in BATCH_FIELDS:
            assert_same(getattr(batches[1], name), getattr(batches[0], name), f"batch.{name}")
        self.same("apply_gradients", batches, self.floats(len(keys)), self.now())

    def same(self, verb, *args, **kwargs):
        """Call a verb whose result is a number or a report."""
        results = self.call(verb, *args, **kwargs)
        if results is not None:
            assert results[1] == results[0], f"{verb}: {results}"

    def train(self):
        keys = self.keys()
        self.same("apply_gradients", keys, self.floats(len(keys)), self.now())

    def assign(self):
        keys = self.keys()
        mode = self.choose(["replace", "add"])
        self.same("assign", keys, self.floats(len(keys)), mode=mode, step=self.now())

    def erase(self):
        self.same("erase", self.keys()[:30])

    def pin(self):
        self.call(self.choose(["pin", "unpin"]), self.keys()[:10])

    def evict(self):
        where = self.choose([es.StepEviction(5), es.L2Eviction(0.5, 0), es.FrequencyEviction(2, 1)])
        most = self.choose([None, None, 7])
        reports = self.call("evict", where=where, step=self.now(), max_rows=most, return_rows=True)
        if reports is not None:
            assert reports[1][:4] == reports[0][:4]
            assert_same_rows(reports[1].rows, reports[0].rows, "evicted")

    def find(self):
        found = self.call("find", self.keys(), missing=self.choose(["default", "initial", "raise"]))
        if found is not None:
            assert_same(found[1], found[0], "find")

    def pool(self):
        keys = self.keys()
        offsets = np.sort(self.rng.integers(0, len(keys) + 1, 9))
        offsets[0], offsets[-1] = 0, len(keys)
        pooled = self.call("pooled", keys, offsets, mode=self.choose(["sum", "mean", "sqrtn"]))
        if pooled is not None:
            assert_same(pooled[1], pooled[0], "pooled")

    def exchange(self):
        """Save each table, and go on with what the other's engine loads of it.

        Tables that log their changes add a delta to what the other engine saved.
        """
        self.check_evicted()
        has_log = bool(self.config["track_changes"])
        reports = [
            table.save(folder, delta=has_log, max_deltas=4)
            for table, folder in zip(self.tables, self.folders, strict=True)
        ]
        assert reports[1].kind == reports[0].kind
        for table in self.tables:
            table.close()
        self.folders.reverse()
        self.tables = [*map(self.load, self.folders, self.evicted)]

    def load(self, folder, engine):
        optimizer = self.config["optimizer"]
        return es.Table.load(
            folder,
            device=engine,
            hash_seed=self.config["hash_seed"],
            on_evict=self.evicted[engine].append,
            optimizer=optimizer if optimizer is not None and callable(optimizer.lr) else None,
            allow_nonfinite=True,
        )

    # ---- comparison

    def check(self):
        cpu, cuda = self.tables
        assert len(cuda) == len(cpu)
        rows = [exported(table) for table in self.tables]
        assert (rows[0] is None) == (rows[1] is None)
        if rows[0] is not None:
            assert_same_rows(rows[1], rows[0], "rows")
        for name in ("keys", "counts", "epochs"):
            candidates = [getattr(table.candidates(), name) for table in self.tables]
            assert_same(candidates[1], candidates[0], f"candidates.{name}")
        assert cuda._engine.get_state() == cpu._engine.get_state()
        assert cuda.pinned.tolist() == cpu.pinned.tolist()
        for partition in range(256):
            filters = [table._engine.bloom_read(partition) for table in self.tables]
            assert_same(filters[1], filters[0], f"sub-filter {partition}")
        if self.config["track_changes"]:
            changes = [table.changes() for table in self.tables]
            assert_same(changes[1].upserted, changes[0].upserted, "upserted")
            assert_same(changes[1].deleted, changes[0].deleted, "deleted")
        self.check_evicted()

    def check_evicted(self):
        sides = []
        for parts in self.evicted.values():
            keys = np.concatenate([part.keys for part in parts] or [np.empty(0, np.int64)])
            sides.append(np.sort(keys))
            parts.clear()
        assert_same(sides[1], sides[0], "on_evict")

    def run(self, n_calls):
        verbs = [self.insert_and_train] * 8 + [self.find, self.pool, self.evict] * 2
        verbs += [self.train, self.assign, self.erase, self.pin, self.exchange]
        for _ in range(n_calls):
            verb = self.choose(verbs)
            verb()
            if verb != self.find:
                self.check()


def run_both(seed, n_calls, **sizes):
    both = Both(seed, **sizes)
    try:
        both.run(n_calls)
        both.exchange()
        both.check()
    except Exception as error:
        error.add_note(f"program {seed} at step {both.step} on {both.config}")
        raise
    finally:
        both.close()


pytestmark = pytest.mark.filterwarnings("ignore::embstore.EmbstoreWarning")


@pytest.mark.parametrize("seed", range(16))
def test_engines_agree(device, seed):
    run_both(seed, 40)


@pytest.mark.parametrize("seed", range(20, 26))
def test_engines_agree_in_small_memory_interleaved(device, small_memory, seed):
    device.seed = seed
    run_both(seed, 25, batch_keys=80, spread=150)


@pytest.mark.torture
def test_engines_agree_for_long(device, record):
    tally = record("R7", "random calls on both engines, checkpoints exchanged", "calls")
    for seed in range(100, 100 + N_TORTURE_PROGRAMS):
        run_both(seed, 80)
        tally.passed(80)
