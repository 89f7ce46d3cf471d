"""many: 26 features of 4096 ids in one call of a Store, against one feature of as many ids.

The features have a table each, or share one; in both cases all rows together are those of the one
table beside them. A training step is find_or_insert_many and apply_gradients_many.
"""

from functools import cached_property

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Case, Contender, Ratio, Scale, axes_of
from bench.keys import key_of
from bench.workspace import Setup, Workspace, filled_table

N_FEATURES = 26
SCALES = {
    "tiny": Scale(n_rows=2600, batch=26 * 16, rounds=2),
    "quick": Scale(n_rows=26_000, batch=26 * 512, rounds=5),
    "small": Scale(n_rows=2_600_000, batch=26 * 4096, rounds=15),
    "default": Scale(n_rows=2_600_000, batch=26 * 4096, rounds=21),
}
ONE, EACH, SHARED = "one feature", "26 features, a table each", "26 features, one table"
FEATURES = [f"feature{i}" for i in range(N_FEATURES)]


class ManySetup(Setup):
    """A setup whose rows also lie in 26 tables."""

    def build(self):
        return ManyWorkspace(self)


class ManyWorkspace(Workspace):
    """The stores beside the one table."""

    @cached_property
    def shared(self):
        """A store whose features share the one table."""
        return es.Store([self.table], features=dict.fromkeys(FEATURES, self.table.name))

    @cached_property
    def each(self):
        """A store of a table for each feature."""
        fewer = Setup(self.setup.n_rows // N_FEATURES, self.setup.dim, self.setup.seed, **MORE)
        return es.Store([filled_table(fewer, name=name) for name in FEATURES])

    def by_feature(self, array):
        """Return the equal parts of an array, one for each feature."""
        return dict(zip(FEATURES, np.split(array, N_FEATURES), strict=True))

    def keys_of(self, case, store):
        """Return the keys of each batch by feature, all with a row in the store's tables."""
        n_rows = self.setup.n_rows // (N_FEATURES if store is self.each else 1)
        row_ids = self.batches(case).row_ids % n_rows
        return [self.by_feature(key_of(ids, self.setup.seed)) for ids in row_ids]


MORE = {"is_trained": True}


def build_find(name):
    """Return a builder of a read by the store of that name; by the table itself without one."""

    def build(space, case):
        if not name:
            keys, table = list(space.batches(case).keys), space.table
            return lambda turn: table.find(keys[turn % len(keys)])
        store = getattr(space, name)
        by_feature = space.keys_of(case, store)
        return lambda turn: store.find_many(by_feature[turn % len(by_feature)])

    return build


def build_step(name):
    """Return a builder of a training step by the store of that name, or by the table itself."""

    def build(space, case):
        grads = space.grads(case.axes["batch"])
        if not name:
            keys, table = list(space.batches(case).keys), space.table

            def one(turn):
                step = space.next_step()
                with table.find_or_insert(keys[turn % len(keys)], step=step) as batch:
                    table.apply_gradients(batch, grads, step=step)

            return one
        store, grads = getattr(space, name), space.by_feature(grads)
        by_feature = space.keys_of(case, store)

        def many(turn):
            step = space.next_step()
            batches = store.find_or_insert_many(by_feature[turn % len(by_feature)], step=step)
            store.apply_gradients_many(batches, grads, step=step)
            for batch in batches.values():
                batch.close()

        return many

    return build


def many_case(name, axes, size, seed, make, bounds):
    found = {ONE: "", EACH: "each", SHARED: "shared"}
    return Case(
        name=name,
        axes=axes,
        setup=ManySetup(axes["n_rows"], axes["dim"], seed, **MORE),
        contenders=tuple(Contender(k, make(store), is_ours=True) for k, store in found.items()),
        figures=(Ratio(ONE, EACH, bounds["each"]), Ratio(ONE, SHARED, bounds["shared"])),
        n_batches=30,
        rounds=size.rounds,
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    for dim in (16, 64):
        axes = axes_of(
            n_rows=size.n_rows,
            dim=dim,
            batch=size.batch,
            distribution="uniform",
            threads=1,
            features=N_FEATURES,
        )
        yield many_case("find_many", axes, size, seed, build_find, targets.FIND_MANY)
        yield many_case("step of many", axes, size, seed, build_step, targets.TRAIN_MANY)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, twins)
