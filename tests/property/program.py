"""Random programs: long sequences of all verbs on a `Pair`, drawn by a numpy generator."""

import numpy as np
from property.configs import by_generator, config_of
from property.pair import Pair

import embstore as es

INT64 = np.iinfo(np.int64)
HOSTILE_KEYS = np.array(
    [0, -1, -2, -3, INT64.min, INT64.min + 1, INT64.max, INT64.max - 1]
    + [1 << i for i in range(63)]
    + [i << 32 for i in range(1, 40)],
    np.int64,
)
FAR_BACK = [5, 30, 30, 2**20, 2**33]


def keys_of(rng, n, spread):
    """Return n keys, Zipf-like over about `spread` ids, one in eight of them hostile."""
    keys = (spread ** rng.random(n)).astype(np.int64) - 1
    keys = np.where(rng.random(n) < 0.5, -keys, keys)
    hostile = rng.random(n) < 0.125
    keys[hostile] = rng.choice(HOSTILE_KEYS, hostile.sum())
    return keys


def floats_of(rng, n, dim, is_wild):
    """Return (n, dim) numbers around 1, if `is_wild` some of them huge, tiny or not finite."""
    x = rng.standard_normal((n, dim)).astype(np.float32)
    if is_wild and x.size:
        wild = np.array([np.nan, np.inf, -np.inf, 1e30, -1e38, 1e-42, 0.0, -0.0], np.float32)
        at = rng.integers(x.size, size=1 + x.size // 50)
        x.flat[at] = rng.choice(wild, len(at))
    return x


class Program:
    """One random program; `run` goes on until it has handed `n_key_ops` keys to the verbs."""

    def __init__(self, seed, batch_keys=200, spread=600, check_every=4, engine="cpu", **overrides):
        self.rng = np.random.default_rng(seed)
        self.choose = by_generator(self.rng)
        self.pair = Pair(engine, **(config_of(self.choose) | overrides))
        self.batch_keys, self.spread = batch_keys, spread
        self.step = 0
        self.n_key_ops = 0
        self.check_every = check_every
        self.history = []
        self.verbs = [
            (self.find_or_insert, 10),
            (self.train, 10),
            (self.apply_ticket, 4),
            (self.apply_keys, 3),
            (self.find, 4),
            (self.contains, 1),
            (self.assign, 2),
            (self.erase, 1),
            (self.evict, 2),
            (self.pins, 1),
            (self.pooled, 2),
            (self.pooled_train, 2),
            (self.exchange, 1),
            (self.rare, 1),
        ]
        weights = np.array([weight for _, weight in self.verbs], float)
        self.odds = weights / weights.sum()

    def run(self, n_key_ops):
        """Run until `n_key_ops` keys were handed over."""
        while self.n_key_ops < n_key_ops:
            verb, _ = self.verbs[self.rng.choice(len(self.verbs), p=self.odds)]
            self.history.append(verb.__name__)
            verb()
            n_verbs = len(self.history)
            if n_verbs % self.check_every == 0:
                self.pair.check()
            if n_verbs % (16 * self.check_every) == 0:
                self.pair.check_bloom()
        self.pair.check()
        self.pair.check_bloom()

    # Arguments

    def keys(self):
        n = self.choose([0, 1, 2, self.batch_keys // 4, self.batch_keys, self.batch_keys])
        self.n_key_ops += max(n, 1)
        return keys_of(self.rng, n, self.spread)

    def next_step(self):
        """Return a step: mostly time goes on, sometimes it jumps, or goes back."""
        jump = self.choose([0, 0, 1, 1, 1, 1, 2, 3, 3, 9, 40])
        if self.rng.random() < 0.004:
            jump = self.choose([2**20, 2**31, 2**32 - 1, 2**32, 2**33])
        self.step += jump
        if self.rng.random() < 0.05:
            return max(0, self.step - int(self.rng.integers(self.choose(FAR_BACK))))
        return self.step

    def floats(self, n):
        return floats_of(self.rng, n, self.pair.table.dim, self.rng.random() < 0.05)

    def bags(self, n):
        n_bags = int(self.rng.integers(1, 20))
        inner = np.sort(self.rng.integers(0, n + 1, n_bags - 1))
        return np.concatenate(([0], inner, [n])).astype(np.int64)

    # Verbs

    def find_or_insert(self):
        keys = self.keys()
        counts = self.choose([None, None, np.array([0, 1, 2, 5, 2**32 - 1], np.uint32)])
        if counts is not None:
            odds = [0.2, 0.5, 0.15, 0.1, 0.05]
            counts = self.rng.choice(counts, len(keys), p=odds)
        admit = self.choose(["policy", "policy", "policy", "always"])
        twin = self.pair.find_or_insert(keys, self.next_step(), counts=counts, admit=admit)
        if twin:
            self.pair.batches = [*self.pair.batches[-3:], (twin, len(keys))]
        return twin

    def train(self):
        if self.find_or_insert():
            self._apply(*self.pair.batches[-1])

    def apply_ticket(self):
        if self.pair.batches:
            self._apply(*self.choose(self.pair.batches))

    def apply_keys(self):
        keys = self.keys()
        self._apply(keys, len(keys))

    def _apply(self, batch_or_keys, n):
        lr = self.choose([None, None, 0.02])
        grads = self.floats(n)
        self.pair.report("apply_gradients", batch_or_keys, grads, self.next_step(), lr=lr)

    def find(self):
        self.pair.find(self.keys(), self.choose(["default", "default", "initial", "raise"]))

    def contains(self):
        self.pair.contains(self.keys())

    def assign(self):
        keys = self.keys()[:50]
        mode, step = self.choose(["replace", "add"]), self.choose([None, self.next_step()])
        self.pair.report("assign", keys, self.floats(len(keys)), mode=mode, step=step)

    def erase(self):
        self.pair.report("erase", self.keys()[:20])

    def evict(self):
        own = self.pair.config["eviction"]
        where = self.choose([es.StepEviction(5), es.FrequencyEviction(2, 1), own])
        self.pair.evict(
            where=None if where is own else where,
            step=self.choose([None, self.next_step()]),
            max_rows=self.choose([None, None, 0, 1, 10]),
            keep_at_least=self.choose([0, 0, 5, 100]),
            pins=self.choose([None, self.keys()[:20]]),
            dry_run=self.choose([False, False, True]),
        )

    def pins(self):
        self.pair.both(self.choose(["pin", "unpin"]), self.keys()[:10])
        assert self.pair.table.pinned.tolist() == sorted(self.pair.model.pins)

    def _pooled(self, step):
        keys = self.keys()
        weights = self.choose([None, self.rng.random(len(keys)).astype(np.float32)])
        return self.pair.pooled(
            keys,
            self.bags(len(keys)),
            mode=self.choose(["sum", "mean", "sqrtn"]),
            weights=weights,
            step=step,
            padding=self.choose([None, 0, -1]),
        )

    def pooled(self):
        self._pooled(None)

    def pooled_train(self):
        twin = self._pooled(self.next_step())
        if twin:
            self._apply(twin, len(twin.expected.rows))

    def exchange(self):
        """Take some rows of the model, change them, and import them into both."""
        rows = self.pair.model.export()
        keep = self.rng.random(len(rows)) < 0.1
        for name in ("keys", "values", "slots", "freq", "step"):
            setattr(rows, name, getattr(rows, name)[keep])
        rows.keys = rows.keys ^ self.choose([0, 1, 1 << 62])
        rows.freq = rows.freq + np.uint32(3)
        rows.step = rows.step + self.choose([0, 1])
        self.n_key_ops += len(rows)
        self.pair.import_(rows)

    def rare(self):
        verb = self.choose(
            [self.clear, self.reserve, self.reset_changes, self.reload, self.save_beside]
        )
        verb()

    def clear(self):
        if self.rng.random() < 0.2:
            self.pair.both("clear")

    def reserve(self):
        self.pair.table.reserve(int(self.rng.integers(2 * self.spread)))

    def reset_changes(self):
        if self.pair.config["track_changes"]:
            self.pair.both("reset_changes")

    def reload(self):
        self.pair.reload()

    def save_beside(self):
        self.pair.save_beside(self.choose([None, 0, 1000]))


def run_program(seed, n_key_ops, **overrides):
    """Run one random program on a random table."""
    program = Program(seed, **overrides)
    try:
        program.run(n_key_ops)
    except Exception as error:
        verbs = f"{len(program.history)} verbs, the last {program.history[-4:]}"
        error.add_note(f"program {seed}: {verbs}; on {program.pair.config}")
        raise
    finally:
        program.pair.close()
