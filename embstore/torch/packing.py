"""A table whole as one tensor of bytes, and back: a checkpoint in a plain tar.

What comes back is read member by member, with checks: a tensor may be of anybody's making.
"""

import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embstore import CorruptCheckpointError, EmbstoreError, Store, Table

NAME = "table"  # in the checkpoint, whatever the table's own
NOW = "now"  # the step of the next training lookup, beside the table
_COPIED_BYTES = 1 << 20


def pack(table: Table, now: int) -> torch.Tensor:
    """Return all that a table is, and the step that its model is at, as (n_bytes,) uint8."""
    with tempfile.TemporaryDirectory(prefix="embstore-") as folder:
        saved, packed = Path(folder, "table"), Path(folder, "packed")
        Store({NAME: table}).save(saved, extra={NOW: now})
        with tarfile.open(packed, "w", format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(saved.iterdir()):
                member = tarfile.TarInfo(path.name)
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(member, file)
                path.unlink()
        return torch.from_numpy(np.fromfile(packed, np.uint8))


def unpack_into(table: Table, packed: Any, what: str) -> int:
    """Make a table what was packed, and return the step that its model was at.

    Raises
    ------
    CorruptCheckpointError
        If it is not what `pack` gave; the table is as it was. `what` names it.
    CheckpointMismatchError
        If it is of a table of another name, dim or dtype.
    """
    given = packed.detach() if isinstance(packed, torch.Tensor) else None
    if given is None or given.dtype != torch.uint8 or given.dim() != 1:
        shown = type(packed).__name__ if given is None else f"{tuple(given.shape)} {given.dtype}"
        raise CorruptCheckpointError(f"{what}: expected a table as (n_bytes,) uint8, got {shown}")
    with tempfile.TemporaryDirectory(prefix="embstore-") as folder:
        try:
            _extract(given.cpu().contiguous().numpy(), Path(folder))
            store = Store({NAME: table})
            store.restore(folder)
        except tarfile.TarError as error:
            raise CorruptCheckpointError(f"{what} holds no table: {error}") from None
        except EmbstoreError as error:  # of a place that nobody knows
            raise type(error)(str(error).replace(folder, what)) from None
    now = (store.extra or {}).get(NOW)
    if isinstance(now, bool) or not isinstance(now, int) or not 0 <= now < 2**63:
        return table.step + 1  # of a checkpoint that `pack` did not make
    return now


def _extract(packed: np.ndarray[Any, Any], folder: Path) -> None:
    """Write the members of a tar as files of a folder, if they are plain files of plain names."""
    seen = set()
    with tarfile.open(fileobj=io.BytesIO(packed.data), mode="r:") as tar:
        for member in tar:
            name = member.name
            is_plain = member.type == tarfile.REGTYPE and not member.pax_headers
            is_name = (
                len(name) < 256
                and name not in ("", ".", "..")
                and not any(c in name for c in "/\\\0")
            )
            if not (is_plain and is_name) or name in seen or member.issparse():
                raise CorruptCheckpointError(f"{folder}: {name!r} is no file of a table")
            seen.add(name)
            source = tar.extractfile(member)
            assert source is not None
            with source, Path(folder, name).open("wb") as file:
                while data := source.read(_COPIED_BYTES):
                    file.write(data)
