"""The order of things on disk: when a checkpoint begins to be, and when the one before ends.

1. All data files are durable, and their names too, before the manifest takes its name.
2. Until then the manifest before names only files that are still there.
3. Files that no manifest names are of a save that did not end, or of one that was replaced; the
   next save removes them. Files of other names are left alone.
"""

import re
import warnings

from embstore.checkpoint import manifest as manifests
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.manifest import Manifest
from embstore.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
    EmbstoreWarning,
)

OWN_NAME = re.compile(r"g[0-9]{8,19}-[a-z0-9-]+\.arrow", re.ASCII)


def data_name(generation: int, rest: str) -> str:
    """Return the name of a data file: the number of the save comes first."""
    return f"g{generation:08d}-{rest}.arrow"


def read_manifest(directory: Directory) -> Manifest | None:
    """Return the manifest of the checkpoint in `directory`; None if there is none."""
    place = directory.place(manifests.NAME)
    try:
        file = directory.open(manifests.NAME)
    except FileNotFoundError:
        return None
    with file:
        if file.n_bytes > manifests.MAX_BYTES:
            raise CorruptCheckpointError(
                f"{place} has {file.n_bytes} bytes; a manifest has at most {manifests.MAX_BYTES}"
            )
        return manifests.decode(file.read(0, file.n_bytes), place)


def manifest_to_replace(directory: Directory) -> Manifest | None:
    """Return the manifest that a save here replaces; raise if it is not ours to replace."""
    try:
        return read_manifest(directory)
    except (CorruptCheckpointError, CheckpointMismatchError) as error:
        raise type(error)(f"nothing was saved, to spare what is there: {error}") from error


def prepare(directory: Directory, manifest: Manifest) -> None:
    """Write the manifest, durable data files being there, under its temporary name."""
    place = directory.place(manifests.NAME)
    data = manifests.encode(manifest)
    if len(data) > manifests.MAX_BYTES:
        raise CheckpointError(
            f"{place} would have {len(data)} bytes; a manifest has at most {manifests.MAX_BYTES}: "
            f"give large parts of extra as numpy arrays"
        )
    manifests.decode(data, place)
    with directory.create(manifests.TEMPORARY_NAME) as file:
        file.write(memoryview(data))
        file.sync()
    directory.sync()


def publish(directory: Directory) -> None:
    """Give the manifest its name. If this fails, nobody knows whether it has been done."""
    directory.rename(manifests.TEMPORARY_NAME, manifests.NAME)
    directory.sync()


def remove_unlisted(directory: Directory, manifest: Manifest | None) -> None:
    """Remove files of our names that `manifest` does not name."""
    listed = set() if manifest is None else {file.name for file in manifest.files}
    for name in directory.names():
        is_own = name == manifests.TEMPORARY_NAME or OWN_NAME.fullmatch(name)
        if is_own and name not in listed:
            directory.remove(name)


def remove_replaced(directory: Directory, manifest: Manifest) -> None:
    """Remove the files of the checkpoint before; what cannot go now goes at the next save."""
    try:
        remove_unlisted(directory, manifest)
    except CheckpointError as error:
        warnings.warn(
            f"the checkpoint was saved; files of the one before remain: {error}",
            EmbstoreWarning,
            stacklevel=4,
        )
