"""Data files on their way to the disk: exported, put into Arrow's form, written, made durable.

1. Without `Pace.n_ahead` one thread does all of it, a block at a time.
2. With it, a thread exports and encodes blocks ahead of those that are written, and another makes
   files durable while the next ones are written. What is written is the same.
3. Leaving a FileWriter waits until every file is durable, or raises what prevented it.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import NamedTuple, Self

from embstore._prefetch import Prefetched
from embstore._workers import Job, Workers
from embstore.checkpoint import commit
from embstore.checkpoint.blocks import Arrays, BlockWriter
from embstore.checkpoint.entries import FileEntry
from embstore.checkpoint.fsio import Directory, OutputFile
from embstore.checkpoint.layout import Columns

Pieces = list[memoryview]


class Pace(NamedTuple):
    """How blocks go from the table to the disk.

    Attributes
    ----------
    n_ahead : int
        Blocks that a thread of its own exports ahead of those that are written; 0: no thread.
    observe : callable or None
        Called with the bytes written so far after each block; what it raises ends the save.
    """

    n_ahead: int = 0
    observe: Callable[[int], None] | None = None


AS_IT_COMES = Pace()


class FileWriter:
    """Writes the data files of one save; a context manager.

    The entries of files have a SHA-256 if the checkpoint is to be signed.
    """

    def __init__(
        self,
        directory: Directory,
        generation: int,
        is_signed: bool = False,
        pace: Pace = AS_IT_COMES,
    ) -> None:
        self.place = directory.path
        self.generation = generation
        self.n_bytes = 0
        self._directory = directory
        self._is_signed = is_signed
        self._pace = pace
        self._syncs: Workers | None = None
        self._synced: list[Job[None]] = []

    def __enter__(self) -> Self:
        if self._pace.n_ahead > 0:
            self._syncs = Workers(1, "embstore-sync")
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if self._syncs is None:
            return
        self._syncs.shutdown()
        if kind is None:
            for synced in self._synced:
                synced.result()

    def write(self, entry: FileEntry, columns: Columns, blocks: Iterator[Arrays]) -> FileEntry:
        """Write a data file; return its entry with its name and sections."""
        name = commit.data_name(self.generation, entry.name)
        pieces, digest = _Pieces(), hashlib.sha256()
        writer = BlockWriter(name, columns, pieces)
        with ExitStack() as stack:
            file = stack.enter_context(self._directory.create(name))
            encoded = stack.enter_context(closing(self._ahead(_encoded(blocks, writer, pieces))))
            for block in encoded:
                self._write(block, file)
                for piece in block if self._is_signed else ():
                    digest.update(piece)
            self._finish(file, stack)
        sha256 = digest.hexdigest() if self._is_signed else None
        return replace(entry, name=name, sections=tuple(writer.sections), sha256=sha256)

    def _write(self, pieces: Pieces, file: OutputFile) -> None:
        for piece in pieces:
            file.write(piece)
            self.n_bytes += len(piece)
        if self._pace.observe is not None:
            self._pace.observe(self.n_bytes)

    def _finish(self, file: OutputFile, closes_it: ExitStack) -> None:
        """Make a file durable, here or while the next ones are written."""
        if self._syncs is None:
            file.sync()
        else:
            closes_it.pop_all()
            self._synced.append(self._syncs.submit(_sync_and_close, file))

    def _ahead(
        self, blocks: Generator[Pieces, None, None]
    ) -> Generator[Pieces, None, None] | Prefetched[Pieces]:
        return blocks if self._syncs is None else Prefetched(blocks, self._pace.n_ahead)


class _Pieces:
    """Holds the bytes of a file until they are taken."""

    def __init__(self) -> None:
        self._held: Pieces = []

    def write(self, data: memoryview) -> None:
        """Hold some bytes."""
        self._held.append(data)

    def take(self) -> Pieces:
        """Return what is held."""
        held, self._held = self._held, []
        return held


def _encoded(
    blocks: Iterator[Arrays], writer: BlockWriter, pieces: _Pieces
) -> Generator[Pieces, None, None]:
    """Yield the bytes of a file, a block at a time."""
    for block in blocks:
        writer.add(block)
        yield pieces.take()
    writer.finish()
    yield pieces.take()


def _sync_and_close(file: OutputFile) -> None:
    with file:
        file.sync()
