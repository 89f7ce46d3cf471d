"""``embstore import``: a new checkpoint of rows from Parquet, npz, TFRA, dynamicemb or PyTorch."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embstore as es
from embstore.cli import _options
from embstore.cli._checkpoint import policy_text
from embstore.cli._import_source import Batch, Source, stored
from embstore.cli._progress import Bar
from embstore.cli._report import count

FORMATS = ("parquet", "npz", "tfra", "dynamicemb", "torch")
DTYPES = ("float32", "float16", "bfloat16")
VALUE_DTYPES = ("float32", "float16", "bfloat16", "float64")
TOLD: Any = object()  # of an option that is not given: what the source tells, or the default


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    add = parser.add_argument
    add("source", nargs="+", metavar="SOURCE", help="files or folders of the format")
    add("--from", dest="format", required=True, choices=FORMATS, help="the format")
    add("--out", required=True, metavar="DIR", help="the folder of the checkpoint to make")
    add("--force", action="store_true", help="replace the checkpoint in that folder")
    add("--json", action="store_true", help="print JSON")
    _add_table(parser.add_argument_group("the table; what the source tells, by default"))
    _add_source(parser.add_argument_group("the source"))


def _add_table(group: Any) -> None:
    add = group.add_argument
    add("--dim", type=_options.integer(1), metavar="N", help="values of a row, to be checked")
    told = {"default": TOLD}
    add("--name", **told, help="its name (table)")
    add("--dtype", **told, choices=DTYPES, help="of its values")
    policies = {
        "--optimizer": (_options.optimizer, "adagrad:lr=0.05 or none"),
        "--initializer": (_options.initializer, "normal:std=0.01"),
        "--admission": (_options.admission, "as of train"),
        "--evict": (_options.eviction, "as of train"),
    }
    for name, (read, words) in policies.items():
        add(name, **told, type=read, metavar="POLICY", help=words)
    add("--seed", **told, type=_options.integer(0), metavar="N", help="of the values of new rows")
    add("--freq", type=_options.integer(0), default=1, help="of rows without one (1)")
    add("--step", type=_options.integer(0), default=0, help="of rows without one (0)")


def _add_source(group: Any) -> None:
    add = group.add_argument
    add("--key-column", default="key", metavar="NAME", help="of Parquet (key)")
    add("--values-column", default="values", metavar="NAME", help="of Parquet (values)")
    add("--parameter", metavar="NAME", help="which parameter, variable or table, if several")
    add("--ids", metavar="FILE", help="the keys of a parameter's rows, .npy or Parquet")
    add("--value-dtype", choices=VALUE_DTYPES, default="float32", help="of TFRA's values")
    add(
        "--scores",
        choices=("freq", "step", "ignore"),
        default="ignore",
        help="what the scores of dynamicemb are (ignore)",
    )
    add("--fresh-slots", action="store_true", help="optimizer state as at birth")
    add("--allow-nonfinite", action="store_true", help="take NaN and infinity")


def run(options: argparse.Namespace) -> int:
    """Make a checkpoint; nothing is written before all rows are read and checked."""
    if os.path.lexists(os.path.join(options.out, "manifest.json")) and not options.force:
        raise es.ArgumentError(f"{options.out} holds a checkpoint; --force replaces it")
    source = _source(options)
    with es.Table.from_config(_config(source, options)) as table:
        _fill(table, source, options)
        table.save(options.out)
        n_rows, name, dim, dtype = len(table), table.name, table.dim, table.dtype
        optimizer = table.optimizer
    if options.json:
        document = {"table": name, "rows": n_rows, "dim": dim, "dtype": dtype, "out": options.out}
        document["optimizer"] = None if optimizer is None else optimizer.to_config()
        print(json.dumps(document, indent=2))
    else:
        print(
            f"{count(n_rows)} rows of {dim} {dtype} in table {name!r} of {options.out}; "
            f"optimizer {'none' if optimizer is None else policy_text(optimizer.to_config())}"
        )
    return 0


def _source(options: argparse.Namespace) -> Source:
    has_slots = not options.fresh_slots
    if options.format == "parquet":
        from embstore.cli._import_parquet import parquet_source

        return parquet_source(options.source, options.key_column, options.values_column, has_slots)
    if options.format == "npz":
        from embstore.cli._import_arrays import npz_source

        return npz_source(options.source, has_slots)
    if options.format == "torch":
        from embstore.cli._import_torch import torch_source

        return torch_source(options.source, options.parameter, options.ids)
    from embstore.cli._import_raw import dynamicemb_source, tfra_source

    if options.format == "tfra":
        return tfra_source(options.source, options.parameter, options.value_dtype, options.dim)
    if len(options.source) != 1:
        raise es.DataError(f"one folder of dynamicemb can be imported, got {len(options.source)}")
    return dynamicemb_source(
        options.source[0], options.parameter, options.scores, options.dim, has_slots
    )


def _config(source: Source, options: argparse.Namespace) -> Mapping[str, Any]:
    """Return the parameters of the table: as given, else as the source tells."""
    dim = options.dim if source.dim is None else source.dim
    if dim is None:
        raise es.DataError("the source has no rows, and does not say how long they are: give --dim")
    if options.dim not in (None, dim):
        raise es.DataError(f"--dim is {options.dim}; the vectors of the source have {dim} values")
    told = {"dtype": source.dtype, **source.config, "dim": dim}
    given = {
        "name": options.name,
        "dtype": options.dtype,
        "optimizer": options.optimizer,
        "initializer": options.initializer,
        "admission": options.admission,
        "eviction": options.evict,
        "seed": options.seed,
    }
    for name, value in given.items():
        if value is not TOLD:
            told[name] = value.to_config() if hasattr(value, "to_config") else value
    return told


def _fill(table: es.Table, source: Source, options: argparse.Namespace) -> None:
    """Import all rows; raise if a key comes twice or a value is not a number."""
    born = _born_slots(table)
    with Bar("import", source.n_rows, "rows") as bar:
        for batch in source.read(table.slots):
            rows = _rows(batch, table.dtype, born, options)
            _check(table, rows, options.allow_nonfinite)
            table.import_(rows)
            bar.update(len(rows))


def _born_slots(table: es.Table) -> NDArray[np.float32]:
    """Return the slots of a row at its birth, (1, slot_floats)."""
    with es.Table(table.dim, optimizer=table.optimizer) as probe:
        probe.assign([0], np.zeros((1, table.dim), np.float32))
        (rows,) = probe.export()
    return rows.slots


def _rows(
    batch: Batch, dtype: str, born: NDArray[np.float32], options: argparse.Namespace
) -> es.Rows:
    n = len(batch.keys)
    freq, step, slots = batch.freq, batch.step, batch.slots
    return es.Rows(
        batch.keys,
        stored(batch.values, dtype),
        np.repeat(born, n, axis=0) if slots is None else slots,
        np.full(n, min(options.freq, 2**32 - 1), np.uint32) if freq is None else freq,
        np.full(n, options.step, np.int64) if step is None else step,
    )


def _check(table: es.Table, rows: es.Rows, is_nonfinite_allowed: bool) -> None:
    unique, counts = np.unique(rows.keys, return_counts=True)
    twice = np.concatenate([unique[counts > 1], rows.keys[table.contains(rows.keys)]])
    if len(twice):
        raise es.DataError(f"the key {twice[0]} comes twice in the source")
    if is_nonfinite_allowed:
        return
    for numbers in (rows.values, rows.slots):
        floats = numbers
        if numbers.dtype == np.uint16:
            floats = (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
        is_off = ~np.isfinite(floats).all(axis=1)
        if is_off.any():
            key = rows.keys[int(is_off.argmax())]
            raise es.DataError(
                f"the row of key {key} has NaN or infinity as {table.dtype}; --allow-nonfinite "
                f"takes it"
            )
