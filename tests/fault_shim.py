"""The preloaded library tests/cpp/fault_shim.c: how to build it, arm it, and read its journal."""

import ctypes
import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "cpp" / "fault_shim.c"
PAGE = 4096
DIRECTORY = "directory"


def build(folder):
    """Compile the library into `folder` and return its path; None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = Path(folder) / "fault_shim.so"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


def environment(library, prefix):
    """Return what the environment of a process must hold."""
    return {"LD_PRELOAD": str(library), "FAULT_PREFIX": str(prefix)}


class Shim:
    """While it is entered, calls of this process count, and the call `at` meets `how`."""

    def __init__(self, at=0, how="\0", error=0, is_sticky=False):
        self.n_calls, self.names = 0, []
        self._arguments = (ctypes.c_long(at), ord(how), error, int(is_sticky))
        self._library = ctypes.CDLL(None)
        self._library.fault_disarm.restype = ctypes.c_long
        self._library.fault_log.restype = ctypes.c_char_p

    def __enter__(self):
        self._library.fault_arm(*self._arguments)
        return self

    def __exit__(self, *exc):
        self.n_calls = self._library.fault_disarm()
        self.names = self._library.fault_log().decode().split()

    def journal(self, path):
        """Write a journal from now on."""
        self._library.fault_journal(str(path).encode())

    def mark(self, text):
        """Put a line into the journal."""
        self._library.fault_mark(text.encode())


# ---- what a disk may hold after a power loss


@dataclass
class Operation:
    """A line of the journal."""

    op: str
    inode: int
    number: int
    first: bytes
    second: bytes


def read_journal(path):
    """Return the operations of a journal."""
    data, at, found = Path(path).read_bytes(), 0, []
    while at < len(data):
        end = data.index(b"\n", at)
        op, inode, number, n_first, n_second = data[at:end].decode().split()
        middle = end + 1 + int(n_first)
        at = middle + int(n_second)
        found.append(
            Operation(op, int(inode), int(number), data[end + 1 : middle], data[middle:at])
        )
    return found


@dataclass
class Inode:
    """A file: what is durable of it, what is not, page by page, and its two sizes."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    dirty: set = field(default_factory=set)

    def write(self, offset, data):
        """Write bytes; the pages that they touch are dirty."""
        end = offset + len(data)
        self.current.extend(bytes(max(0, end - len(self.current))))
        self.current[offset:end] = data
        self.dirty.update(range(offset // PAGE, (end - 1) // PAGE + 1))

    def resize(self, n_bytes):
        """Cut the file off, or add zeros."""
        del self.current[n_bytes:]
        self.current.extend(bytes(n_bytes - len(self.current)))
        self.dirty.add(n_bytes // PAGE)

    def sync(self):
        """Make everything durable."""
        self.durable = bytearray(self.current)
        self.dirty = set()

    def after_loss(self, rng):
        """Return the bytes that are found: of dirty pages any, of two sizes either or between."""
        if not self.dirty:
            return bytes(self.durable)
        sizes = sorted((len(self.durable), len(self.current)))
        n_bytes = rng.choice([*sizes, rng.randint(*sizes)])
        found = bytearray(n_bytes)
        for page in range(-(-n_bytes // PAGE)):
            is_new = page in self.dirty and rng.random() < 0.5
            piece = (self.current if is_new else self.durable)[page * PAGE : (page + 1) * PAGE]
            piece = piece[: n_bytes - page * PAGE]
            found[page * PAGE : page * PAGE + len(piece)] = piece
        return bytes(found)


class Disk:
    """A folder as a disk has it: files, and names of which some are not durable yet.

    A call that changes names (create, rename, unlink, link, mkdir) is durable after an fsync of
    their directory, and until then kept or lost as a whole, each for itself. What lies in a
    directory whose own name is lost is lost with it.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        self.inodes, self.names, self.pending = {}, {}, []
        for path in sorted(Path(folder).rglob("*")):
            if path.is_dir():
                self.names[str(path)] = DIRECTORY
            else:
                inode = path.stat().st_ino
                self.inodes[inode] = Inode()
                self.inodes[inode].write(0, path.read_bytes() or b"")
                self.inodes[inode].sync()
                self.names[str(path)] = inode

    def apply(self, operation):
        """Do what a line of the journal says."""
        op, inode = operation.op, operation.inode
        first, second = operation.first.decode(errors="replace"), operation.second.decode()
        if op == "w":
            self.inodes[inode].write(operation.number, operation.first)
        elif op == "t":
            self.inodes[inode].resize(operation.number)
        elif op == "s":
            self.inodes[inode].sync()
        elif op == "d":
            for changes in self.pending:
                if os.path.dirname(next(iter(changes))) == first:
                    self._change(self.names, changes)
            self.pending = [c for c in self.pending if os.path.dirname(next(iter(c))) != first]
        elif op == "c":
            self.inodes[inode] = Inode()
            self._pend({first: inode})
        elif op == "m":
            self._pend({first: DIRECTORY})
        elif op == "u":
            self._pend({first: None})
        elif op == "r":
            self._pend({first: None, second: self._current()[first]})
        elif op == "l":
            self._pend({second: self._current()[first]})
        elif op != "!":
            raise ValueError(f"the model of power loss knows no operation {op!r}")

    def _pend(self, changes):
        self.pending.append(changes)

    @staticmethod
    def _change(names, changes):
        for name, inode in changes.items():
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode

    def _current(self):
        """Return the names as the running system sees them."""
        names = dict(self.names)
        for changes in self.pending:
            self._change(names, changes)
        return names

    def lose(self, rng, into):
        """Write into the folder `into` what is found after the power comes back."""
        names = dict(self.names)
        for changes in self.pending:
            if rng.random() < 0.5:
                self._change(names, changes)
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        for name, inode in sorted(names.items()):
            found = into / Path(name).relative_to(self.folder)
            if not found.parent.is_dir():
                continue
            if inode == DIRECTORY:
                found.mkdir()
            else:
                found.write_bytes(self.inodes[inode].after_loss(rng))


def power_losses(disk, journal, into, n_cases, seed):
    """Yield the marks so far, for power losses at random places of a journal.

    Parameters
    ----------
    disk
        The disk as it was when the journal began.
    journal
        The operations.
    into
        Where to put what the disk has after the loss.
    """
    rng = random.Random(seed)
    places = sorted(rng.randint(0, len(journal)) for _ in range(n_cases))
    done, marks = 0, []
    for place in places:
        for operation in journal[done:place]:
            if operation.op == "!":
                marks.append(operation.first.decode())
            disk.apply(operation)
        done = place
        disk.lose(rng, into)
        yield list(marks)
