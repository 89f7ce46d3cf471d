"""Rows from raw files of keys and values: dumps of TFRA's tables and of dynamicemb's.

TFRA (tensorflow/recommenders-addons: ``save_to_file_system``, FileSystemSaver) writes
``<name>_mht_<i>of<n>[_rank<r>_size<s>]-keys`` and ``...-values``. dynamicemb (in
NVIDIA/recsys-examples) writes ``<table>_emb_<what>.rank_<r>.world_size_<w>``, what being keys,
values, scores and opt_values, and ``<table>_opt_args.json``. Files are little-endian numbers
without a header, the i-th vector belonging to the i-th key; optimizer slots of TFRA are tables of
their own.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embstore.cli._import_source import (
    Array,
    Batch,
    Slots,
    Source,
    as_freq,
    as_steps,
    batch_rows,
    chosen,
    table_dtype,
)
from embstore.errors import DataError

KEY = np.dtype("<i8")
FLOAT = np.dtype("<f4")
SHARD = re.compile(
    r"(?P<name>.*)_mht_(?P<shard>\d+)of(?P<n_shards>\d+)(_rank(?P<rank>\d+)_size(?P<size>\d+))?"
)
RANK = re.compile(r"(?P<name>.+)_emb_keys\.rank_(?P<rank>\d+)\.world_size_(?P<size>\d+)")
OPTIMIZERS = {
    "sgd": ("SGD", {"lr": "lr"}),
    "adam": ("Adam", {"lr": "lr", "eps": "eps", "weight_decay": "weight_decay"}),
    "exact_adagrad": ("Adagrad", {"lr": "lr", "eps": "eps"}),
    "exact_row_wise_adagrad": ("RowWiseAdagrad", {"lr": "lr", "eps": "eps"}),
}


@dataclass(frozen=True)
class Shard:
    """Files that belong together; scores and slots may be absent."""

    keys: str
    values: str
    scores: str | None = None
    slots: str | None = None
    n_keys: int = 0


def sized(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards with their number of keys."""
    found = []
    for shard in shards:
        n_bytes = _size(shard.keys)
        if n_bytes % KEY.itemsize:
            raise DataError(
                f"{shard.keys} has {n_bytes} bytes, not a multiple of 8: keys are int64"
            )
        n_keys = n_bytes // KEY.itemsize
        found.append(Shard(shard.keys, shard.values, shard.scores, shard.slots, n_keys))
    return found


def _size(path: str) -> int:
    if not os.path.isfile(path):
        raise DataError(f"there is no file {path}")
    return os.path.getsize(path)


def width_of(
    shards: Sequence[Shard], paths: Sequence[str], itemsize: int, given: int | None
) -> int | None:
    """Return the numbers a key of the files, which must fit their keys exactly; None of no keys."""
    width = given
    for shard, path in zip(shards, paths, strict=True):
        n_bytes, row_bytes = _size(path), shard.n_keys * itemsize
        if width is None and shard.n_keys:
            is_whole = n_bytes and n_bytes % row_bytes == 0
            width = n_bytes // row_bytes if is_whole else None
        if n_bytes != row_bytes * (width or 0) or (shard.n_keys and width is None):
            each = f"{n_bytes / row_bytes:.9g} numbers" if shard.n_keys else "more than no numbers"
            raise DataError(
                f"{path} has {n_bytes} bytes, and {shard.keys} has {shard.n_keys} keys: {each} of "
                f"{itemsize} bytes a key; expected {width or 'a whole number'}"
            )
    return width


def read_shards(
    shards: Sequence[Shard], dim: int, dtype: "np.dtype[Any]", n_slots: int, scores: str
) -> Iterator[Batch]:
    """Yield the rows of all shards."""
    for shard in shards:
        n_batch = batch_rows(8 * (2 + dim + n_slots))
        keys = _chunks(shard.keys, shard.n_keys, KEY, None, n_batch)
        values = _chunks(shard.values, shard.n_keys, dtype, dim, n_batch)
        slots = marks = None
        if n_slots and shard.slots:
            slots = _chunks(shard.slots, shard.n_keys, FLOAT, n_slots, n_batch)
        if shard.scores and scores != "ignore":
            marks = _chunks(shard.scores, shard.n_keys, KEY, None, n_batch)
        for key, value in zip(keys, values, strict=True):
            mark = None if marks is None else next(marks)
            where = f"the file {shard.scores}"
            yield Batch(
                key,
                value,
                None if slots is None else next(slots),
                None if mark is None or scores != "freq" else as_freq(mark, where),
                None if mark is None or scores != "step" else as_steps(mark, where),
            )


def _chunks(
    path: str, n: int, dtype: "np.dtype[Any]", width: int | None, n_batch: int
) -> Iterator[Array]:
    """Yield a file's numbers, of `n_batch` rows each."""
    with open(path, "rb") as file:
        for first in range(0, n, n_batch):
            n_rows = min(n_batch, n - first)
            array = np.fromfile(file, dtype, n_rows * (width or 1))
            if len(array) != n_rows * (width or 1):
                raise DataError(f"{path} became shorter while it was read")
            yield array if width is None else array.reshape(n_rows, width)


# TFRA


def tfra_source(
    paths: Sequence[str], parameter: str | None, value_dtype: str, dim: int | None
) -> Source:
    """Return the rows of TFRA's files: folders, prefixes, or the files of keys themselves."""
    stems = sorted({stem for path in paths for stem in _tfra_stems(path)})
    names = sorted({_tfra_name(stem) for stem in stems})
    name = chosen(names, parameter, "variable")
    own = [stem for stem in stems if _tfra_name(stem) == name]
    _check_shards(own)
    shards = sized([Shard(f"{stem}-keys", f"{stem}-values") for stem in own])
    dtype = np.dtype({"bfloat16": "<u2"}.get(value_dtype, value_dtype)).newbyteorder("<")
    width = width_of(shards, [shard.values for shard in shards], dtype.itemsize, dim)

    def read(slots: Slots) -> Iterator[Batch]:
        return read_shards(shards, width or 1, dtype, 0, "ignore")

    n_rows = sum(shard.n_keys for shard in shards)
    return Source(n_rows, width, table_dtype(dtype, "the file of values"), read)


def _tfra_stems(path: str) -> list[str]:
    """Return the paths of a source's shards, without ``-keys``."""
    if os.path.isdir(path):
        found = glob.glob(os.path.join(glob.escape(path), "*-keys"))
    elif path.endswith(("-keys", "-values")):
        found = [path.rpartition("-")[0] + "-keys"]
    elif os.path.isfile(f"{path}-keys"):
        found = [f"{path}-keys"]
    else:
        found = glob.glob(f"{glob.escape(path)}_mht_*-keys")
    if not found:
        raise DataError(f"there are no files {path}-keys, {path}_mht_*-keys or {path}/*-keys")
    return [name.removesuffix("-keys") for name in found]


def _tfra_name(stem: str) -> str:
    found = SHARD.fullmatch(os.path.basename(stem))
    return found["name"] if found else os.path.basename(stem)


def _check_shards(stems: Sequence[str]) -> None:
    """Raise unless all shards of all ranks are there."""
    found = [SHARD.fullmatch(os.path.basename(stem)) for stem in stems]
    named = [match for match in found if match]
    if not named:
        return
    counts = {(int(m["n_shards"]), int(m["size"] or 1)) for m in named}
    if len(counts) > 1 or len(named) < len(found):
        raise DataError(f"the files are of several saves: {', '.join(stems)}")
    ((n_shards, size),) = counts
    there = {(int(m["shard"]), int(m["rank"] or 0)) for m in named}
    missing = [
        f"shard {shard} of {n_shards}, rank {rank} of {size}"
        for shard in range(1, n_shards + 1)
        for rank in range(size)
        if (shard, rank) not in there
    ]
    if missing:
        raise DataError(f"of {named[0]['name']!r} these files are missing: {'; '.join(missing)}")


# dynamicemb


def dynamicemb_source(
    folder: str, parameter: str | None, scores: str, dim: int | None, has_slots: bool
) -> Source:
    """Return the rows of a dump of dynamicemb, all ranks joined."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}")
    ranks = [match for match in map(RANK.fullmatch, sorted(os.listdir(folder))) if match]
    name = chosen(sorted({match["name"] for match in ranks}), parameter, "table")
    shards = sized(_rank_shards(folder, [match for match in ranks if match["name"] == name]))
    width = width_of(shards, [shard.values for shard in shards], FLOAT.itemsize, dim)
    if scores != "ignore":
        _check_scores(shards)
    files = [shard.slots for shard in shards if shard.slots]
    n_slots = None
    if files and len(files) < len(shards):
        raise DataError(
            f"{len(files)} of {len(shards)} ranks in {folder} have opt_values; expected all"
        )
    if has_slots and files:
        n_slots = width_of(shards, files, FLOAT.itemsize, None)

    def read(slots: Slots) -> Iterator[Batch]:
        wanted = sum(size for _, size in slots)
        if wanted and n_slots and n_slots != wanted:
            raise DataError(
                f"{files[0]} has {n_slots} numbers a key; the optimizer's slots are "
                f"{', '.join(f'{slot} ({size})' for slot, size in slots)}: give --optimizer, or "
                f"--fresh-slots"
            )
        used = wanted if n_slots else 0
        return read_shards(shards, width or 1, FLOAT, used, scores)

    n_rows = sum(shard.n_keys for shard in shards)
    config = _dynamicemb_config(os.path.join(folder, f"{name}_opt_args.json"))
    return Source(n_rows, width, "float32", read, {"name": name, **config})


def _rank_shards(folder: str, ranks: Sequence["re.Match[str]"]) -> list[Shard]:
    sizes = {int(match["size"]) for match in ranks}
    if len(sizes) > 1:
        raise DataError(f"{folder} has dumps of several world sizes: {sorted(sizes)}")
    (world,) = sizes
    there = {int(match["rank"]) for match in ranks}
    missing = sorted(set(range(world)) - there)
    if missing:
        raise DataError(f"{folder} has no file of the keys of ranks {missing}, of {world}")
    stem = os.path.join(folder, ranks[0]["name"])
    shards = []
    for rank in range(world):
        end = f".rank_{rank}.world_size_{world}"
        scores, slots = f"{stem}_emb_scores{end}", f"{stem}_emb_opt_values{end}"
        shards.append(
            Shard(
                f"{stem}_emb_keys{end}",
                f"{stem}_emb_values{end}",
                scores if os.path.isfile(scores) else None,
                slots if os.path.isfile(slots) else None,
            )
        )
    return shards


def _check_scores(shards: Sequence[Shard]) -> None:
    for shard in shards:
        if shard.scores is None:
            raise DataError(f"{shard.keys} has no file of scores beside it: use --scores ignore")
    width_of(shards, [str(shard.scores) for shard in shards], KEY.itemsize, 1)


def _dynamicemb_config(path: str) -> dict[str, Any]:
    """Return the optimizer that ``<table>_opt_args.json`` names, if it is one of ours."""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, Mapping) or found.get("opt_type") not in OPTIMIZERS:
        return {}
    kind, names = OPTIMIZERS[found["opt_type"]]
    config: dict[str, Any] = {"kind": kind}
    config.update({ours: found[theirs] for theirs, ours in names.items() if theirs in found})
    if kind == "Adam" and {"beta1", "beta2"} <= set(found):
        config["betas"] = [found["beta1"], found["beta2"]]
    if "initial_accumulator_value" in found and kind.endswith("Adagrad"):
        config["initial_accumulator"] = found["initial_accumulator_value"]
    return {"optimizer": config}
