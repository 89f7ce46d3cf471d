"""What every case of bad input is tried on: a table with content, a store, and good arguments."""

import numpy as np
from contract.tools import ids

import embstore as es

VALUE, TYPE = es.ArgumentError, es.ArgumentTypeError


class Scene:
    """A table with rows, candidates and a batch, a store, and good arguments of all kinds."""

    def __init__(self, engine, folder):
        self.folder = folder
        self.table = es.Table(
            2,
            name="user",
            optimizer=es.Adagrad(0.1),
            admission=es.CounterAdmission(2),
            track_changes=True,
            max_rows=100,
            device=engine,
        )
        self.batch = self.table.find_or_insert(ids(1, 2, 1, 2, 3), step=5)
        self.pooled = self.table.pooled(ids(1, 2), ids(0, 2), step=6)
        self.table.apply_gradients(self.batch, self.grads(5), step=6)
        self.other = es.Table(2, name="other", optimizer=es.SGD(0.1), device=engine)
        self.store = es.Store([self.table, self.other])
        self.keys = ids(1, 2, 9)

    def grads(self, n=3, dim=2):
        return np.ones((n, dim), np.float32)

    def rows(self, n=3, **columns):
        """Return good rows to import, some of whose columns are replaced."""
        good = {
            "keys": np.arange(10, 10 + n),
            "values": self.grads(n),
            "slots": self.grads(n),
            "freq": np.ones(n, np.uint32),
            "step": np.ones(n, np.int64),
        }
        return es.Rows(**good | columns)
