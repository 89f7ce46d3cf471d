"""Every call that saving and loading make to the operating system, so that tests can fail each one.

1. A file is named relative to its open directory, and is not opened through a link.
2. An OSError leaves as a CheckpointError that names the file and keeps ``errno``.
3. A call that failed is never tried again as if it had not: after a failed fsync nothing is known.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Self

import numpy as np

from embstore import _core
from embstore.errors import CheckpointError, CorruptCheckpointError

LOCK_NAME = "lock"

# What a fault injector replaces.
calls = SimpleNamespace(
    open=os.open,
    close=os.close,
    write=os.write,
    pread=os.pread,
    preadv=os.preadv,
    fstat=os.fstat,
    fsync=os.fsync,
    rename=os.rename,
    unlink=os.unlink,
    listdir=os.listdir,
    mkdir=os.mkdir,
    flock=fcntl.flock,
    reserve=_core.AddressRange,
    map_file=_core.AddressRange.map,
)


@contextmanager
def _naming(verb: str, place: str) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that says what could not be done, and to what."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            error.errno, f"cannot {verb} {place}: {error.strerror or error}"
        ) from error


def check_byte_order() -> None:
    """Raise on a big-endian machine: files are little-endian and read as they lie."""
    if sys.byteorder != "little":
        raise CheckpointError("checkpoints are written and read on little-endian machines only")


class Directory:
    """An open directory; `create` makes it, and what leads to it, durably."""

    def __init__(self, path: str, create: bool = False) -> None:
        check_byte_order()
        self.path = path
        if create:
            _make(path)
        with _naming("open the directory", path):
            self._fd = calls.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; files that are open stay so."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with _naming("close", self.path):
                calls.close(fd)

    def place(self, name: str) -> str:
        """Return the path of a file, for messages."""
        return os.path.join(self.path, name)

    def create(self, name: str) -> "OutputFile":
        """Make a file that was not there, readable by its owner alone."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with _naming("create", self.place(name)):
            return OutputFile(self.place(name), calls.open(name, flags, 0o600, dir_fd=self._fd))

    def open(self, name: str) -> "InputFile":
        """Open a regular file; FileNotFoundError is left as it is."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        place = self.place(name)
        try:
            fd = calls.open(name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CorruptCheckpointError(f"{place} is a link; expected a file") from error
            raise CheckpointError(
                error.errno, f"cannot open {place}: {error.strerror or error}"
            ) from error
        file = InputFile(place, fd)
        try:
            file.measure()
        except BaseException:
            file.close()
            raise
        return file

    def names(self) -> list[str]:
        """Return the names of all files in ascending order."""
        with _naming("list", self.path):
            return sorted(calls.listdir(self._fd))

    def rename(self, old: str, new: str) -> None:
        """Put the file `old` in the place of `new`."""
        with _naming("rename to", self.place(new)):
            calls.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with _naming("remove", self.place(name)):
            calls.unlink(name, dir_fd=self._fd)

    def sync(self) -> None:
        """Make the names of the directory durable."""
        with _naming("sync the directory", self.path):
            calls.fsync(self._fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who saves here; the lock ends with the process, whatever happens."""
        place = self.place(LOCK_NAME)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with _naming("open the lock", place):
            fd = calls.open(LOCK_NAME, flags, 0o600, dir_fd=self._fd)
        try:
            with _naming("lock", place):
                _lock(fd, place)
            yield
        finally:
            try:  # not by closing alone: a child that was forked meanwhile has it open too
                with _naming("release the lock", place):
                    calls.flock(fd, fcntl.LOCK_UN)
            finally:
                with _naming("close the lock", place):
                    calls.close(fd)


def _lock(fd: int, place: str) -> None:
    try:
        calls.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            error.errno, f"another save to this directory is running: it holds {place}"
        ) from error


def _make(path: str) -> None:
    """Make a directory and those that lead to it, each with its name made durable."""
    missing = []
    head = os.path.abspath(path)
    while not os.path.isdir(head):
        missing.append(head)
        head = os.path.dirname(head)
    for made in reversed(missing):
        with _naming("make the directory", made):
            try:
                calls.mkdir(made)
            except FileExistsError:
                if not os.path.isdir(made):
                    raise
        with Directory(os.path.dirname(made)) as parent:
            parent.sync()


class OutputFile:
    """A new file, written from its beginning to its end."""

    def __init__(self, place: str, fd: int) -> None:
        self.place = place
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        fd, self._fd = self._fd, -1
        with _naming("close", self.place):
            calls.close(fd)

    def write(self, data: memoryview) -> None:
        """Append all of `data`, contiguous bytes."""
        with _naming("write to", self.place):
            while data:
                written = calls.write(self._fd, data)
                if written <= 0:
                    raise OSError(errno.EIO, f"wrote {written} of {len(data)} bytes")
                data = data[written:]

    def sync(self) -> None:
        """Make what was written durable."""
        with _naming("sync", self.place):
            calls.fsync(self._fd)


class InputFile:
    """A regular file, read at offsets."""

    def __init__(self, place: str, fd: int) -> None:
        self.place = place
        self.n_bytes = 0
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if it is not closed yet."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with _naming("close", self.place):
            calls.close(fd)

    def measure(self) -> None:
        """Set `n_bytes`; raise if this is no regular file."""
        with _naming("look at", self.place):
            status = calls.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptCheckpointError(f"{self.place} is not a regular file")
        self.n_bytes = int(status.st_size)

    def map_to(self, memory: _core.AddressRange, start: int) -> None:
        """Let all of the file be read from `start` of a range on, also when it is closed."""
        with _naming("map", self.place):
            calls.map_file(memory, self._fd, self.n_bytes, start)

    def read_into_pool(self, offset: int, n_bytes: int) -> memoryview:
        """Return the same in memory that is used again when nothing refers to it any longer."""
        data = _core.new_output(n_bytes, -1, np.dtype(np.uint8)).data
        n_read = 0
        with _naming("read", self.place):
            while n_read < n_bytes:
                n = calls.preadv(self._fd, [data[n_read:]], offset + n_read)
                if n == 0:
                    raise self._end_at(offset + n_read, offset, n_bytes)
                n_read += n
        return data

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return the bytes [offset, offset + n_bytes), which must all be there."""
        with _naming("read", self.place):
            data: bytes = calls.pread(self._fd, n_bytes, offset)
            parts = [data]
            n_read = len(data)
            while n_read < n_bytes and data:
                data = calls.pread(self._fd, n_bytes - n_read, offset + n_read)
                parts.append(data)
                n_read += len(data)
        if n_read < n_bytes:
            raise self._end_at(offset + n_read, offset, n_bytes)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end_at(self, end: int, offset: int, n_bytes: int) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self.place} ends at offset {end}; expected {n_bytes} bytes from offset {offset} on"
        )
