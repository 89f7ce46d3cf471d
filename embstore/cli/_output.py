"""A new file that is there as a whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from embstore.errors import ArgumentError

BUFFER_BYTES = 1 << 20


def check_output(path: str, is_forced: bool) -> None:
    """Raise if a file cannot be made here, or one is there and is not to be replaced."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ArgumentError(f"there is no folder {folder} to write {path} into")
    if os.path.isdir(path):
        raise ArgumentError(f"{path} is a folder; name a file")
    if os.path.lexists(path) and not is_forced:
        raise ArgumentError(f"{path} exists; --force replaces it")


@contextmanager
def new_file(path: str, is_forced: bool) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its name when all of it is on the disk.

    Until then it has another name in the same folder, and is removed if anything fails.
    """
    check_output(path, is_forced)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        check_output(path, is_forced)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder or ".")


def _sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
