"""Pooling on the device."""

from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.training import lanes_shift


def pool(
    launcher: Launcher,
    table: int,
    rows: int,
    offsets: int,
    n_bags: int,
    mode: int,
    out: int,
    dim: int,
    inverse: int = 0,
    weights: int = 0,
) -> None:
    """Reduce each bag of rows to one, (n_bags, dim) float32.

    Parameters
    ----------
    launcher
        Where to run.
    table
        The address of the descriptor.
    rows
        Row ids, uint32: of the positions, or, with `inverse`, of distinct keys.
    offsets
        (n_bags + 1,) int64: bag i is positions offsets[i] to offsets[i + 1].
    n_bags
        How many bags there are.
    mode
        0 sum, 1 mean, 2 sqrtn.
    out
        Where the result goes.
    dim
        Columns.
    inverse
        (n,) uint32: the number of the key of each position; 0 is none.
    weights
        (n,) float32; 0 is ones.
    """
    shift = lanes_shift(dim)
    fields = {"table": table, "rows": rows, "inverse": inverse, "weights": weights}
    fields |= {"offsets": offsets, "n_bags": n_bags, "pool_mode": mode, "out": out}
    launcher.run("pool_bags", n_bags << shift, lanes_shift=shift, **fields)
