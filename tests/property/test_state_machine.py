"""The oracle's main use: random programs of all verbs, compared bit for bit after every call."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from property.configs import config_of
from property.pair import Pair
from property.program import HOSTILE_KEYS, floats_of

import embstore as es

KEYS = st.lists(
    st.one_of(st.integers(-4, 30), st.sampled_from(HOSTILE_KEYS.tolist())), max_size=40
).map(lambda keys: np.array(keys, np.int64))
JUMPS = st.sampled_from([1, 0, 2, 3, 10, 100, 2**31, 2**32])
BACK = st.sampled_from([0, 0, 1, 5, 2**20])
SEEDS = st.integers(0, 2**32 - 1)
OPTIONAL_STEP = st.one_of(st.none(), st.just(0))
WHERE = st.sampled_from(
    [None, es.StepEviction(3), es.L2Eviction(0.5, 0), es.FrequencyEviction(2, 1)]
)


class TableMachine(RuleBasedStateMachine):
    """A table, its model, and the verbs to tell both."""

    engine = "cpu"

    @initialize(data=st.data())
    def make(self, data):
        config = config_of(lambda options: data.draw(st.sampled_from(options)))
        self.pair = Pair(self.engine, **config)
        self.step = 0

    def at(self, jump, back):
        self.step += jump
        return max(0, self.step - back)

    def floats(self, seed, n):
        rng = np.random.default_rng(seed)
        return floats_of(rng, n, self.pair.table.dim, is_wild=seed % 8 == 0)

    def apply(self, batch_or_keys, n, seed, step):
        self.pair.report("apply_gradients", batch_or_keys, self.floats(seed, n), step)

    @rule(keys=KEYS, jump=JUMPS, back=BACK, admit=st.sampled_from(["policy", "always"]))
    def find_or_insert(self, keys, jump, back, admit):
        twin = self.pair.find_or_insert(keys, self.at(jump, back), admit=admit)
        if twin:
            self.pair.batches.append((twin, len(keys)))

    @rule(keys=KEYS, jump=JUMPS, counts=st.sampled_from([0, 1, 3, 2**32 - 1]))
    def find_or_insert_counted(self, keys, jump, counts):
        counts = np.full(len(keys), counts, np.uint32)
        self.pair.find_or_insert(keys, self.at(jump, 0), counts=counts)

    @precondition(lambda self: self.pair.batches)
    @rule(which=st.integers(0, 3), seed=SEEDS, jump=JUMPS, back=BACK)
    def apply_ticket(self, which, seed, jump, back):
        batches = self.pair.batches
        self.apply(*batches[-1 - which % len(batches)], seed, self.at(jump, back))

    @rule(keys=KEYS, seed=SEEDS, jump=JUMPS)
    def apply_keys(self, keys, seed, jump):
        self.apply(keys, len(keys), seed, self.at(jump, 0))

    @rule(keys=KEYS, missing=st.sampled_from(["default", "initial", "raise"]))
    def find(self, keys, missing):
        self.pair.find(keys, missing)
        self.pair.contains(keys)

    @rule(keys=KEYS, seed=SEEDS, mode=st.sampled_from(["replace", "add"]), step=OPTIONAL_STEP)
    def assign(self, keys, seed, mode, step):
        step = step and self.step
        self.pair.report("assign", keys, self.floats(seed, len(keys)), mode=mode, step=step)

    @rule(keys=KEYS)
    def erase(self, keys):
        self.pair.report("erase", keys)

    @rule(
        where=WHERE,
        step=OPTIONAL_STEP,
        jump=JUMPS,
        max_rows=st.sampled_from([None, 0, 1, 5]),
        keep_at_least=st.sampled_from([0, 3, 1000]),
        pins=st.one_of(st.none(), KEYS),
        dry_run=st.booleans(),
    )
    def evict(self, step, jump, **kwargs):
        self.pair.evict(step=step if step is None else self.at(jump, 0), **kwargs)

    @rule(keys=KEYS, verb=st.sampled_from(["pin", "unpin"]))
    def pin(self, keys, verb):
        self.pair.both(verb, keys)

    @rule(
        keys=KEYS,
        seed=SEEDS,
        mode=st.sampled_from(["sum", "mean", "sqrtn"]),
        padding=st.sampled_from([None, 0, -1]),
        is_training=st.booleans(),
        is_weighted=st.booleans(),
    )
    def pooled(self, keys, seed, mode, padding, is_training, is_weighted):
        rng = np.random.default_rng(seed)
        weights = rng.random(len(keys)).astype(np.float32) if is_weighted else None
        inner = np.sort(rng.integers(0, len(keys) + 1, 3))
        twin = self.pair.pooled(
            keys,
            np.concatenate(([0], inner, [len(keys)])),
            mode=mode,
            weights=weights,
            padding=padding,
            step=self.step if is_training else None,
        )
        if twin and is_training:
            self.apply(twin, len(twin.expected.rows), seed, self.step)

    @rule(every=st.integers(1, 3), shift=st.sampled_from([0, 1, -(2**63)]))
    def import_(self, every, shift):
        rows = self.pair.model.export()
        rows = type(rows)(
            *(getattr(rows, name)[::every] for name in ("keys", "values", "slots", "freq", "step"))
        )
        rows.keys = rows.keys ^ shift
        self.pair.import_(rows)

    @rule()
    def clear(self):
        self.pair.both("clear")

    @precondition(lambda self: self.pair.config["track_changes"])
    @rule()
    def reset_changes(self):
        self.pair.both("reset_changes")

    @rule()
    def reload(self):
        self.pair.reload()

    @rule(snapshot_bytes=st.sampled_from([None, 0, 300]))
    def save_beside(self, snapshot_bytes):
        self.pair.save_beside(snapshot_bytes)

    @invariant()
    def is_the_same(self):
        self.pair.check()
        self.pair.check_bloom()

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.close()


TestTableMachine = TableMachine.TestCase
