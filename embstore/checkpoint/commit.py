"""The order of things on disk: when a checkpoint begins to be, and when those before end.

1. All data files are durable, and their names too, before the manifest takes its name.
2. Until then the manifest before names only files that are still there.
3. A generation that is to stay loadable has an exact copy of its manifest under a name of its own,
   durable before the manifest is replaced; its data files go only after that copy has gone.
4. Files that no manifest names are of a save that did not end, or of one that was replaced; the
   next save removes them. Files of other names are left alone.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from embstore._workers import Workers
from embstore.checkpoint import manifest as manifests
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.manifest import Manifest
from embstore.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
    EmbstoreWarning,
)

OWN_NAME = re.compile(r"g([0-9]{8,19})-[a-z0-9-]+\.arrow", re.ASCII)
KEPT_NAME = re.compile(r"g([0-9]{8}|[1-9][0-9]{8,18})-manifest\.json", re.ASCII)


def data_name(generation: int, rest: str) -> str:
    """Return the name of a data file: the number of the save comes first."""
    return f"g{generation:08d}-{rest}.arrow"


def kept_name(generation: int) -> str:
    """Return the name under which the manifest of a generation is kept once it is replaced."""
    return f"g{generation:08d}-manifest.json"


class Stored(NamedTuple):
    """A manifest and the bytes that it was read from."""

    manifest: Manifest
    data: bytes


@dataclass(frozen=True)
class History:
    """The generations that a save finds in a directory.

    `kept` are those before the newest, ascending, whose manifests are sound; of `unreadable` ones
    nobody knows which files they name.
    """

    newest: Stored | None
    kept: dict[int, Manifest] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()

    @property
    def manifest(self) -> Manifest | None:
        """The newest manifest."""
        return None if self.newest is None else self.newest.manifest

    @property
    def next_generation(self) -> int:
        """The number of the save that comes next: greater than all there are."""
        newest = [] if self.newest is None else [self.newest.manifest.generation]
        return 1 + max([*newest, *self.kept, *self.unreadable], default=0)

    @property
    def manifests(self) -> list[Manifest]:
        """All manifests that could be read."""
        newest = [] if self.newest is None else [self.newest.manifest]
        return [*self.kept.values(), *newest]


# ---- reading


def read_manifest(directory: Directory, hmac_key: bytes | None = None) -> Manifest | None:
    """Return the manifest of the checkpoint in `directory`; None if there is none."""
    stored = _read(directory, manifests.NAME, hmac_key)
    return None if stored is None else stored.manifest


def read_generation(
    directory: Directory, generation: int, hmac_key: bytes | None = None
) -> Manifest | None:
    """Return the manifest of the newest generation or of one that was kept; None if not there."""
    try:
        manifest = read_manifest(directory, hmac_key)
    except (CorruptCheckpointError, CheckpointMismatchError):
        manifest = None  # an older one may be what is wanted for that very reason
    if manifest is not None and manifest.generation == generation:
        return manifest
    return _read_kept(directory, generation, hmac_key)


def generations_in(directory: Directory) -> list[int]:
    """Return the generations whose manifests are sound, ascending."""
    found = set()
    for generation in (None, *kept_generations(directory)):
        try:
            manifest = (
                read_manifest(directory)
                if generation is None
                else _read_kept(directory, generation)
            )
        except (CorruptCheckpointError, CheckpointMismatchError):
            continue
        if manifest is not None:
            found.add(manifest.generation)
    return sorted(found)


def kept_generations(directory: Directory) -> list[int]:
    """Return the generations that files are named for as kept manifests, ascending."""
    matches = map(KEPT_NAME.fullmatch, directory.names())
    return sorted(int(match[1]) for match in matches if match)


def _read(directory: Directory, name: str, hmac_key: bytes | None = None) -> Stored | None:
    place = directory.place(name)
    try:
        file = directory.open(name)
    except FileNotFoundError:
        return None
    with file:
        if file.n_bytes > manifests.MAX_BYTES:
            raise CorruptCheckpointError(
                f"{place} has {file.n_bytes} bytes; a manifest has at most {manifests.MAX_BYTES}"
            )
        data = file.read(0, file.n_bytes)
    return Stored(manifests.decode(data, place, hmac_key), data)


def _read_kept(
    directory: Directory, generation: int, hmac_key: bytes | None = None
) -> Manifest | None:
    stored = _read(directory, kept_name(generation), hmac_key)
    if stored is None:
        return None
    if stored.manifest.generation != generation:
        place = directory.place(kept_name(generation))
        raise CorruptCheckpointError(f"{place} is of generation {stored.manifest.generation}")
    return stored.manifest


def read_history(directory: Directory) -> History:
    """Return what a save finds; raise if the newest manifest is not ours to replace.

    A kept manifest of the newest generation is left over from a save that died, and does not count.
    """
    try:
        newest = _read(directory, manifests.NAME)
    except (CorruptCheckpointError, CheckpointMismatchError) as error:
        raise type(error)(f"nothing was saved, to spare what is there: {error}") from error
    kept: dict[int, Manifest] = {}
    unreadable = []
    for generation in kept_generations(directory):
        if newest is not None and generation == newest.manifest.generation:
            continue
        try:
            manifest = _read_kept(directory, generation)
        except CheckpointError as error:
            unreadable.append(generation)
            _warn(
                f"generation {generation} cannot be read; it is left as it is, with all data files "
                f"that it may name: {error}"
            )
        else:
            if manifest is not None:
                kept[generation] = manifest
    return History(newest, kept, tuple(unreadable))


# ---- writing


def keep_newest(directory: Directory, history: History) -> None:
    """Copy the newest manifest to the name under which it stays when it is replaced."""
    if history.newest is None:
        return
    with directory.create(kept_name(history.newest.manifest.generation)) as file:
        file.write(memoryview(history.newest.data))
        file.sync()


def prepare(directory: Directory, manifest: Manifest, hmac_key: bytes | None) -> Stored:
    """Write the manifest, durable data files being there, under its temporary name."""
    place = directory.place(manifests.NAME)
    data = manifests.encode(manifest, hmac_key)
    if len(data) > manifests.MAX_BYTES:
        raise CheckpointError(
            f"{place} would have {len(data)} bytes; a manifest has at most {manifests.MAX_BYTES}: "
            f"give large parts of extra as numpy arrays"
        )
    stored = Stored(manifests.decode(data, place, hmac_key), data)
    with directory.create(manifests.TEMPORARY_NAME) as file:
        file.write(memoryview(data))
        file.sync()
    directory.sync()
    return stored


def publish(directory: Directory) -> None:
    """Give the manifest its name. If this fails, nobody knows whether it has been done."""
    directory.rename(manifests.TEMPORARY_NAME, manifests.NAME)
    directory.sync()


def remove_leftovers(directory: Directory, history: History) -> None:
    """Remove what a save that did not end has left: files of our names that no manifest names."""
    newest = history.manifest
    for generation in kept_generations(directory):
        if newest is not None and generation == newest.generation:
            directory.remove(kept_name(generation))
    _remove_unlisted(directory, history.manifests, history.unreadable)


def remove_replaced(
    directory: Directory, history: History, manifest: Manifest, keep_last: int, n_threads: int = 1
) -> None:
    """Remove all but the `keep_last` newest generations; what cannot go now goes at the next save.

    The copies of manifests have gone durably before the data files that they name. Of these,
    `n_threads` are removed at a time: the system gives back the memory of each.
    """
    kept = dict(history.kept)
    if history.manifest is not None and keep_last > 1:
        kept[history.manifest.generation] = history.manifest
    too_old = sorted(kept)[: max(0, len(kept) - (keep_last - 1))]
    try:
        for generation in too_old:
            directory.remove(kept_name(generation))
            del kept[generation]
        if too_old:
            directory.sync()
        _remove_unlisted(directory, [manifest, *kept.values()], history.unreadable, n_threads)
    except CheckpointError as error:
        _warn(f"the checkpoint was saved; files of those before remain: {error}")


def _remove_unlisted(
    directory: Directory,
    listing: Iterable[Manifest],
    unreadable: Iterable[int],
    n_threads: int = 1,
) -> None:
    """Remove data files that none of `listing` names, but for those that an unreadable one may."""
    listed = {file.name for manifest in listing for file in manifest.files}
    spared = max(unreadable, default=0)

    def is_unlisted(name: str) -> bool:
        match = OWN_NAME.fullmatch(name)
        is_spared = not match or name in listed or int(match[1]) <= spared
        return name == manifests.TEMPORARY_NAME or not is_spared

    unlisted = list(filter(is_unlisted, directory.names()))
    if n_threads == 1 or len(unlisted) == 1:
        for name in unlisted:
            directory.remove(name)
        return
    with Workers(n_threads, "embstore-remove") as threads:
        removals = [threads.submit(directory.remove, name) for name in unlisted]
    for removal in removals:
        removal.result()


def _warn(message: str) -> None:
    warnings.warn(message, EmbstoreWarning, stacklevel=5)
