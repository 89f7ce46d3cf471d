"""What contenders of a case read and write: the same rows as tables, tensors and arrays.

Row i holds the number i in all its values (`row_numbers`), so that any output tells whose rows it
has. Each thing is made when the first contender asks for it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

import embstore as es
from bench.keys import draw_batches, key_of
from bench.raw_gather import huge_empty

FILL_ROWS = 1 << 17  # rows of one call while a table is filled
LOAD_RESERVED = 0.5  # reserve(n) makes an index in which n rows have this load
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Setup:
    """The tables of some cases, all of the same rows; only a trained one has Adagrad's slots."""

    n_rows: int
    dim: int
    seed: int
    load: float = LOAD_RESERVED
    is_trained: bool = False

    def build(self):
        return Workspace(self)


class Workspace:
    """Tables, tensors and buffers of one setup."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}
        self._batches = (None, None)
        self._out = {}
        self._grads = {}
        self._step = 0

    def batches(self, case):
        """Return the batches of a case; those of one case at a time are kept."""
        asked = (tuple(sorted(case.axes.items())), case.n_batches)
        if self._batches[0] != asked:
            self._batches = (asked, draw_batches(case.axes, case.n_batches, self.setup.seed))
        return self._batches[1]

    def note_unique(self, case):
        """Note which share of a batch's keys are distinct."""
        shares = [len(np.unique(ids)) / len(ids) for ids in self.batches(case).row_ids[:4]]
        self.notes["unique_share"] = round(float(np.mean(shares)), 4)

    def note_load(self):
        """Note the load of the table's index."""
        self.notes["load_measured"] = round(self.table.stats()["load_factor"], 4)

    def out(self, batch):
        """Return the (batch, dim) float32 buffer that all contenders write into."""
        if batch not in self._out:
            self._out = {batch: aligned_empty((batch, self.setup.dim))}
        return self._out[batch]

    def grads(self, batch):
        """Return (batch, dim) gradients, the same for all contenders."""
        if batch not in self._grads:
            self._grads = {batch: gradients(batch, self.setup.dim, self.setup.seed)}
        return self._grads[batch]

    def next_step(self):
        self._step += 1
        return self._step

    @cached_property
    def table(self):
        """The table under test, its index at the load of the setup."""
        return filled_table(self.setup)

    @cached_property
    def static(self):
        """A torch tensor in the memory that torch itself allocates."""
        import torch

        tensor = torch.empty(self.setup.n_rows, self.setup.dim)
        fill(tensor.numpy())
        return tensor

    @cached_property
    def huge(self):
        """The same rows as an array on huge pages."""
        return fill(huge_empty((self.setup.n_rows, self.setup.dim)))

    @cached_property
    def torch_model(self):
        """The torch module and its optimizer, which all torch contenders share."""
        return torch_twin(self.static)


def gradients(batch, dim, seed):
    """Return (batch, dim) float32 gradients of about 0.01."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, dim), np.float32) * np.float32(0.01)


def row_numbers(row_ids):
    """Return the value that each row holds: its number, modulo 2**24, in units of 2**-24."""
    return (np.asarray(row_ids) % (1 << 24)).astype(np.float32) * np.float32(2.0**-24)


def fill(rows):
    """Write the number of each row into all its values; return `rows`."""
    for start in range(0, len(rows), FILL_ROWS):
        part = rows[start : start + FILL_ROWS]
        part[:] = row_numbers(np.arange(start, start + len(part)))[:, None]
    return rows


def filled_table(setup, **options):
    """Return a table that holds every row of the setup; `options` go to the table."""
    optimizer = es.Adagrad(lr=LEARNING_RATE) if setup.is_trained else None
    options = {"optimizer": optimizer, "seed": setup.seed, "hash_seed": setup.seed} | options
    table = es.Table(setup.dim, **options)
    table.reserve(int(np.ceil(setup.n_rows * LOAD_RESERVED / setup.load)))
    for start in range(0, setup.n_rows, FILL_ROWS):
        row_ids = np.arange(start, min(start + FILL_ROWS, setup.n_rows))
        rows = np.repeat(row_numbers(row_ids)[:, None], setup.dim, axis=1)
        table.assign(key_of(row_ids, setup.seed), rows)
    return table


def torch_twin(weight):
    """Return a sparse nn.Embedding of a tensor, which it then owns, and its Adagrad."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()  # its default, said aloud: no warning
    module = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
    return module, torch.optim.Adagrad(module.parameters(), lr=LEARNING_RATE)


def aligned_empty(shape, alignment=64):
    """Return a float32 array that begins at a cache line."""
    n_bytes = int(np.prod(shape)) * 4
    memory = np.empty(n_bytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + n_bytes].view(np.float32).reshape(shape)
