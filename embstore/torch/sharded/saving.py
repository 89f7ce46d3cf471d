"""Saves of sharded tables: a directory of shards for each save, and one file that names the last.

1. ``latest.json`` is the only commit point: it is renamed into place when all shards are on the
   disk. A crash before leaves the save before in force; what it left behind, the next save removes.
2. The save before is removed only after the commit.
3. Shards are checkpoints; ``latest.json`` has the digest of what lies beside them.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from embstore import (
    ArgumentTypeError,
    CheckpointError,
    CorruptCheckpointError,
    DistributedError,
    Store,
)
from embstore.torch.sharded.wire import Wire

SAVE = 5  # the call, as headers name it
LATEST, EXTRA, PREFIX = "latest.json", "extra.pt", "save-"
FORMAT = 1


class LatestSave(NamedTuple):
    """The save that is in force in a directory.

    Attributes
    ----------
    path : Path
        The directory of its shards.
    world_size : int
        Number of shards.
    step : int
        The step after it.
    extra_sha256 : str or None
    """

    path: Path
    world_size: int
    step: int
    extra_sha256: str | None

    @property
    def shards(self) -> list[Path]:
        """The directories of the shards, each a checkpoint."""
        return [_shard_path(self.path, i, self.world_size) for i in range(self.world_size)]


def latest_save(path: "str | os.PathLike[str]") -> LatestSave | None:
    """Return the save of a sharded module that is in force in a directory, or None.

    Parameters
    ----------
    path
        What was given to ``save``.

    Raises
    ------
    CorruptCheckpointError
        If the file that names it is damaged.

    Examples
    --------
    >>> from embstore.torch import latest_save
    >>> latest_save("a folder without saves") is None
    True
    """
    place = Path(path) / LATEST
    try:
        text = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
        name, world_size, step = str(found["save"]), int(found["world_size"]), int(found["step"])
        digest = found["extra_sha256"]
        is_sound = found["format"] == FORMAT and _number_of(name) >= 0 and world_size > 0
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise CorruptCheckpointError(f"{place} is damaged, or of a later format than {FORMAT}")
    return LatestSave(Path(path) / name, world_size, step, digest)


def load_shard(path: "str | os.PathLike[str]", process_group: Any = None, **options: Any) -> Store:
    """Return this rank's shard of the last save of a sharded module, on any number of ranks.

    Parameters
    ----------
    path
        What was given to ``save``.
    process_group
        Of torch.distributed; the default one by default.
    **options
        As for ``Store.load``, but `shard`.

    Returns
    -------
    Store
        Of which to make the sharded module: with the features that it had. ``extra`` is what was
        saved beside the tables.

    Raises
    ------
    CheckpointError
        If there is no save.
    CorruptCheckpointError
        If a file of it is damaged.
    """
    latest = latest_save(path)
    if latest is None:
        raise CheckpointError(f"{path} holds no save of a sharded module: there is no {LATEST}")
    shard = dist.get_rank(process_group), dist.get_world_size(process_group)
    store = Store.load(latest.shards, shard=shard, **options)
    store.extra = _read_extra(latest)
    return store


def save_shards(
    path: "str | os.PathLike[str]", store: Store, wire: Wire, step: int, extra: Any
) -> None:
    """Save the shards of all ranks, and commit; see ``ShardedModule.save``."""
    _Save(Path(path), store, wire, step).run(extra)


class _Save:
    """One save, in phases that all ranks end together."""

    def __init__(self, path: Path, store: Store, wire: Wire, step: int) -> None:
        self._path = path
        self._store, self._wire, self._step = store, wire, step
        self._number = 0
        self._digest: str | None = None

    @property
    def _own(self) -> Path:
        return self._path / f"{PREFIX}{self._number:08d}"

    def run(self, extra: Any) -> None:
        """Save."""
        is_first = self._wire.rank == 0
        self._number = self._together("the place of a save", self._choose if is_first else None)
        self._together("shards", self._write_shard)
        self._together("the end of a save", (lambda: self._commit(extra)) if is_first else None)
        if is_first:
            self._remove_others()

    def _together(self, what: str, work: Any) -> int:
        """Do a rank's part, wait for the others, and return rank 0's number."""
        number, failure = 0, None
        try:
            number = (work() or 0) if work is not None else 0
        except Exception as error:  # raised below, when the others know
            failure = error
        words = np.full((self._wire.world_size, 2), (number, failure is not None), np.int64)
        heard = self._wire.main.agree(what, (SAVE, SAVE, 0, self._step), words)
        if failure is not None:
            raise failure
        failed = np.flatnonzero(heard[:, 1]).tolist()
        if failed:
            raise DistributedError(
                f"{self._wire.main}: {what}: ranks {failed} failed, and their own errors say why; "
                f"the save before is in force"
            )
        return int(heard[0, 0])

    def _choose(self) -> int:
        """Return the number of a new save, after what was left of others is gone."""
        self._path.mkdir(parents=True, exist_ok=True)
        latest = latest_save(self._path)
        self._number = -1 if latest is None else _number_of(latest.path.name)
        self._remove_others()
        self._number += 1
        self._own.mkdir()
        return self._number

    def _write_shard(self) -> None:
        if not self._own.is_dir():
            raise CheckpointError(
                f"{self._own}, which rank 0 made, is not there: all ranks must see one directory"
            )
        shard = _shard_path(self._own, self._wire.rank, self._wire.world_size)
        before, self._store.extra = self._store.extra, None
        try:
            self._store.save(shard)
        finally:
            self._store.extra = before

    def _commit(self, extra: Any) -> None:
        """Make the shards of all ranks the save in force."""
        save = LatestSave(self._own, self._wire.world_size, self._step, None)
        missing = [str(shard) for shard in save.shards if not shard.is_dir()]
        if missing:
            raise CheckpointError(f"{missing} are not there: all ranks must see one directory")
        digest = None if extra is None else _write_extra(self._own / EXTRA, extra)
        text = json.dumps(
            {
                "format": FORMAT,
                "save": self._own.name,
                "world_size": save.world_size,
                "step": save.step,
                "extra_sha256": digest,
            }
        )
        _sync(self._own)
        draft = self._path / f"{LATEST}.new"
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path / LATEST)
        _sync(self._path)

    def _remove_others(self) -> None:
        for found in self._path.glob(f"{PREFIX}*"):
            if found != self._own and _number_of(found.name) >= 0:
                shutil.rmtree(found)


def _shard_path(path: Path, i: int, n: int) -> Path:
    return path / f"shard-{i:05d}-of-{n:05d}"


def _number_of(name: str) -> int:
    """Return the number of a save, or -1 if it is not the name of one."""
    digits = name.removeprefix(PREFIX)
    return int(digits) if name.startswith(PREFIX) and digits.isdecimal() else -1


def _write_extra(place: Path, extra: Any) -> str:
    """Write what lies beside the tables, see that it can be read, and return its digest."""
    with open(place, "wb") as file:
        torch.save(extra, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        torch.load(place, map_location="cpu", weights_only=True)  # noqa: TID251  (no code is run)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ArgumentTypeError(
            f"extra must be of tensors, numbers, strings, dicts and lists, which "
            f"torch.load(weights_only=True) reads: {first}"
        ) from None
    return _digest_of(place)


def _read_extra(latest: LatestSave) -> Any:
    if latest.extra_sha256 is None:
        return None
    place = latest.path / EXTRA
    if not place.is_file() or _digest_of(place) != latest.extra_sha256:
        raise CorruptCheckpointError(f"{place} is missing, or not what was saved")
    return torch.load(place, map_location="cpu", weights_only=True)  # noqa: TID251  (no code is run)


def _digest_of(place: Path) -> str:
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make the entries of a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
