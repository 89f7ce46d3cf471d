"""An open checkpoint: its manifest, and its data files as blocks whose every byte was checked."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from embstore._workers import Job, Workers
from embstore.checkpoint import commit
from embstore.checkpoint import extra as extras
from embstore.checkpoint import manifest as manifests
from embstore.checkpoint.blocks import (
    Arrays,
    LayoutError,
    Section,
    check_header,
    check_sum,
    decode_block,
)
from embstore.checkpoint.entries import FileEntry
from embstore.checkpoint.fsio import Directory, InputFile
from embstore.checkpoint.layout import EXTRA_COLUMNS, Columns
from embstore.checkpoint.manifest import Manifest
from embstore.checkpoint.signing import sha256_of
from embstore.errors import CheckpointError, CheckpointMismatchError, CorruptCheckpointError

T = TypeVar("T")
Seen = TypeVar("Seen")

BATCH_BYTES = 1 << 22  # of sections that are read at once


class Place(NamedTuple):
    """A section of a file, its number and where it begins."""

    number: int
    offset: int
    section: Section


Batch = list[Place]


def _batches(sections: Iterable[Section], least_bytes: int) -> Iterator[Batch]:
    """Yield sections, so many at a time that they have `least_bytes`."""
    batch: Batch = []
    offset = n_bytes = 0
    for number, section in enumerate(sections):
        batch.append(Place(number, offset, section))
        offset += section.n_bytes
        n_bytes += section.n_bytes
        if n_bytes >= least_bytes:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


class CheckpointFiles:
    """An open checkpoint: its directory, its manifest, and its data files as checked blocks.

    With several threads, they read and check sections ahead of those that are asked for.
    """

    def __init__(
        self,
        path: str,
        generation: int | None = None,
        hmac_key: bytes | None = None,
        n_threads: int = 1,
    ) -> None:
        self._generation = generation
        self._hmac_key = hmac_key
        self._n_ahead = n_threads
        self._readers = Workers(n_threads, "embstore-read") if n_threads > 1 else None
        self.directory = Directory(path)
        self._being_read: set[InputFile] = set()
        try:
            self.manifest = self._read_manifest()
            self._measure()
        except BaseException:
            self.directory.close()
            raise

    def _measure(self) -> None:
        """Look whether all files are there, and of their sizes."""
        for file in self.manifest.files:
            self._open(file).close()

    def indices(self, names: Iterable[str] | None) -> dict[str, int]:
        """Return which tables those of `names` are; all without it."""
        places = {table.name: i for i, table in enumerate(self.manifest.tables)}
        wanted = list(places) if names is None else list(names)
        for name in wanted:
            if name not in places:
                raise CheckpointMismatchError(
                    f"{self.directory.path} has no table {name!r}; it has {sorted(places)}"
                )
        return {name: places[name] for name in wanted}

    def _read_manifest(self) -> Manifest:
        manifest = self._find_manifest()
        if manifest is not None:
            return manifest
        there = commit.generations_in(self.directory)
        if self._generation is not None:
            raise CheckpointError(
                f"{self.directory.path} has no generation {self._generation}; there are {there}"
            )
        kept = f"; generations {there} were kept" if there else ""
        raise CheckpointError(
            f"{self.directory.path} holds no checkpoint: there is no {manifests.NAME} in it{kept}"
        )

    def _find_manifest(self) -> Manifest | None:
        if self._generation is None:
            return commit.read_manifest(self.directory, self._hmac_key)
        return commit.read_generation(self.directory, self._generation, self._hmac_key)

    def close(self) -> None:
        """Close the directory, and the files whose readers stopped halfway."""
        if self._readers is not None:
            self._readers.shutdown()
        with ExitStack() as all_of_it:  # each is closed, whatever the others raise
            all_of_it.callback(self.directory.close)
            while self._being_read:
                all_of_it.callback(self._being_read.pop().close)

    def place(self, file: FileEntry, offset: int) -> str:
        """Return where a section lies, for messages."""
        return f"{self.directory.place(file.name)}, offset {offset}"

    def _open(self, file: FileEntry) -> InputFile:
        """Open a data file, whose size must be exactly what the manifest says."""
        try:
            opened = self.directory.open(file.name)
        except FileNotFoundError:
            raise self._missing(file) from None
        if opened.n_bytes != file.n_bytes:
            opened.close()
            raise CorruptCheckpointError(
                f"{self.directory.place(file.name)} has {opened.n_bytes} bytes; the manifest says "
                f"{file.n_bytes}"
            )
        return opened

    def _missing(self, file: FileEntry) -> CheckpointError:
        if self._find_manifest() != self.manifest:
            return CheckpointError(
                f"{self.directory.path} was replaced by another save while it was read: load it "
                f"again"
            )
        return CorruptCheckpointError(
            f"{self.directory.place(file.name)}, which the manifest names, is missing"
        )

    def blocks(self, file: FileEntry, columns: Columns) -> Iterator[tuple[int, Arrays]]:
        """Yield offset and columns of each block; the file's last section is checked at the end."""
        for offset, arrays, _ in self.blocks_seen(file, columns, lambda arrays: None):
            yield offset, arrays

    def blocks_seen(
        self, file: FileEntry, columns: Columns, look: Callable[[Arrays], Seen]
    ) -> Iterator[tuple[int, Arrays, Seen]]:
        """Yield what `look` returns too; threads that read ahead call it, with blocks in cache."""
        with self._open(file) as opened:
            self._being_read.add(opened)
            try:
                self._check_hash(file, opened)
                yield from self._read_ahead(partial(self._read, file, opened, columns, look), file)
            except GeneratorExit:
                with suppress(CheckpointError):  # who stopped halfway is not there to be told
                    opened.close()
                raise
            finally:
                self._being_read.discard(opened)

    def _check_hash(self, file: FileEntry, opened: InputFile) -> None:
        """Raise if the file is not the one that was signed; checksums can be made right."""
        if self._hmac_key is not None and sha256_of(opened) != file.sha256:
            raise CorruptCheckpointError(
                f"{self.directory.place(file.name)} has not the SHA-256 that was signed"
            )

    def _read_ahead(
        self, read: Callable[[Batch], list[T]], file: FileEntry
    ) -> Generator[T, None, None]:
        """Yield what `read` makes of a file's sections, in their order."""
        if self._readers is None:
            for batch in _batches(file.sections, 1):
                yield from read(batch)
            return
        reading: deque[Job[list[T]]] = deque()
        try:
            for batch in _batches(file.sections, BATCH_BYTES):
                reading.append(self._readers.submit(read, batch))
                if len(reading) > self._n_ahead:
                    yield from reading.popleft().result()
            while reading:
                yield from reading.popleft().result()
        finally:
            for job in reading:
                job.cancel()
            for job in reading:
                job.wait()

    def _read(
        self,
        file: FileEntry,
        opened: InputFile,
        columns: Columns,
        look: Callable[[Arrays], Seen],
        batch: Batch,
    ) -> list[tuple[int, Arrays, Seen]]:
        """Return the blocks among some sections, all of whose bytes are right."""
        found: list[tuple[int, Arrays, Seen]] = []
        begin, n_bytes = batch[0].offset, sum(place.section.n_bytes for place in batch)
        all_data = opened.read_into_pool(begin, n_bytes)
        for number, offset, section in batch:
            data = all_data[offset - begin : offset - begin + section.n_bytes]
            try:
                check_sum(data, section.crc, file.name, offset)
                if number == 0:
                    check_header(data, columns)
                elif number < len(file.sections) - 1:
                    arrays = decode_block(data, section.n_rows, columns)
                    found.append((offset, arrays, look(arrays)))
            except LayoutError as error:
                raise CorruptCheckpointError(f"{self.place(file, offset)}: {error}") from None
        return found

    def bytes_of(self, files: Iterable[FileEntry], columns: Columns) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of files of one column of bytes."""
        for file in files:
            for _, (column,) in self.blocks(file, columns):
                yield column.reshape(-1)

    def extra(self) -> dict[str, Any] | None:
        """Return what was saved beside the tables."""
        values, entries = self.manifest.values, self.manifest.arrays
        if values is None:
            return None
        sizes = [extras.n_bytes_of(entry) for entry in entries]
        files = self.manifest.files_of(None, "extra")
        n_bytes = self.manifest.n_rows(None, "extra")
        if sum(sizes) != n_bytes:
            raise CorruptCheckpointError(
                f"{self.directory.place(manifests.NAME)}: the arrays of extra take {sum(sizes)} "
                f"bytes; their file has {n_bytes}"
            )
        chunks = list(extras.rechunk(self.bytes_of(files, EXTRA_COLUMNS), sizes))
        found = dict(values)
        try:
            for entry, chunk in zip(entries, chunks, strict=True):
                found[entry.name] = extras.array_of(entry, chunk)
        except ValueError as error:
            raise CorruptCheckpointError(f"{self.directory.path}: extra: {error}") from None
        return found
