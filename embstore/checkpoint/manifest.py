"""The manifest: what a checkpoint holds, the only place that says so, and the only commit point.

1. It is JSON whose last member is the SHA-256 of all bytes before that member.
2. What `parse` returns has been checked: types, ranges, names without a path, files that tile.
3. Floats of a state are written in hexadecimal, so that they are exact in every language.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from embstore.checkpoint import fields
from embstore.checkpoint.blocks import Section
from embstore.checkpoint.fields import FieldError
from embstore.checkpoint.layout import (
    BLOOM_COLUMNS,
    CANDIDATE_COLUMNS,
    PIN_COLUMNS,
    Columns,
    Slots,
    row_columns,
)
from embstore.errors import CheckpointMismatchError, CorruptCheckpointError

NAME = "manifest.json"
TEMPORARY_NAME = "manifest.json.tmp"
FORMAT = "embstore-checkpoint"
VERSION = 1
FEATURES: frozenset[str] = frozenset()  # flags of required_features that this reader knows
MAX_BYTES = 1 << 26

DIGEST_MEMBER = b',\n"sha256":"'
END = b'"\n}\n'
TAIL_BYTES = len(DIGEST_MEMBER) + 64 + len(END)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A data file. `table` is None for extra; partitions are those its keys may have."""

    name: str
    kind: str
    table: int | None
    first: int
    last: int
    sections: tuple[Section, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the file."""
        return sum(section.n_bytes for section in self.sections)

    @property
    def n_rows(self) -> int:
        """Rows of all blocks."""
        return sum(section.n_rows for section in self.sections)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table: what its rows look like, its parameters, its clocks and totals."""

    name: str
    dim: int
    dtype: str
    slots: Slots
    config: dict[str, Any]
    state: dict[str, int | float]
    n_nonfinite_rows: int = 0
    bloom_blocks: int = 0  # 64-byte blocks of each sub-filter

    def columns(self, kind: str) -> Columns:
        """Return the columns of the table's files of `kind`."""
        if kind == "rows":
            return row_columns(self.dim, self.dtype, self.slots)
        return {"candidates": CANDIDATE_COLUMNS, "bloom": BLOOM_COLUMNS, "pins": PIN_COLUMNS}[kind]


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """An array of extra; its bytes follow those of the array before."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint. `values` and `arrays` are the two parts of extra."""

    generation: int
    tables: tuple[TableEntry, ...]
    files: tuple[FileEntry, ...]
    store: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    arrays: tuple[ArrayEntry, ...] = ()

    @property
    def step(self) -> int:
        """The greatest step of any table."""
        return max((int(table.state["step"]) for table in self.tables), default=0)

    @cached_property
    def _files_by_kind(self) -> dict[tuple[int | None, str], list[FileEntry]]:
        files: dict[tuple[int | None, str], list[FileEntry]] = {}
        for file in self.files:
            files.setdefault((file.table, file.kind), []).append(file)
        return files

    def files_of(self, table: int | None, kind: str) -> list[FileEntry]:
        """Return the files of one kind of a table, by partition."""
        return self._files_by_kind.get((table, kind), [])

    def n_rows(self, table: int | None, kind: str) -> int:
        """Return the rows in those files."""
        return sum(file.n_rows for file in self.files_of(table, kind))


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest, one line for each table and file."""
    members = {
        "format": FORMAT,
        "format_version": VERSION,
        "min_reader_version": VERSION,
        "required_features": [],
        "byte_order": "little",
        "generation": manifest.generation,
        "step": manifest.step,
        "store": manifest.store,
        "extra": _extra_member(manifest),
    }
    lines = [f'"{name}":{_json(value)}' for name, value in members.items()]
    tables = [_json(_table_member(manifest, i)) for i in range(len(manifest.tables))]
    files = [_json(_file_member(file)) for file in manifest.files]
    lines += [f'"tables":[\n{_lines(tables)}]', f'"files":[\n{_lines(files)}]']
    body = ("{\n" + ",\n".join(lines)).encode()
    return body + DIGEST_MEMBER + hashlib.sha256(body).hexdigest().encode() + END


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _lines(members: list[str]) -> str:
    return ",\n".join(members) + "\n" if members else ""


def _extra_member(manifest: Manifest) -> dict[str, Any] | None:
    if manifest.values is None:
        return None
    arrays = [[array.name, array.dtype, list(array.shape)] for array in manifest.arrays]
    return {"values": manifest.values, "arrays": arrays}


def _table_member(manifest: Manifest, index: int) -> dict[str, Any]:
    table = manifest.tables[index]
    return {
        "name": table.name,
        "dim": table.dim,
        "dtype": table.dtype,
        "slots": [list(slot) for slot in table.slots],
        "rows": manifest.n_rows(index, "rows"),
        "nonfinite_rows": table.n_nonfinite_rows,
        "candidates": manifest.n_rows(index, "candidates"),
        "pins": manifest.n_rows(index, "pins"),
        "bloom_blocks": table.bloom_blocks,
        "config": table.config,
        "state": fields.state_member(table.state),
    }


def _file_member(file: FileEntry) -> dict[str, Any]:
    return {
        "name": file.name,
        "kind": file.kind,
        "table": file.table,
        "partitions": [file.first, file.last],
        "rows": file.n_rows,
        "bytes": file.n_bytes,
        "sections": [[s.n_bytes, s.n_rows, f"{s.crc:08x}"] for s in file.sections],
    }


def decode(data: bytes, place: str) -> Manifest:
    """Return the manifest with these bytes; `place` stands in messages.

    Raises
    ------
    CorruptCheckpointError
        If a byte of it was changed, or it says what cannot be.
    CheckpointMismatchError
        If it is sound and this version cannot read it.
    """
    body = data[:-TAIL_BYTES]
    tail = DIGEST_MEMBER + hashlib.sha256(body).hexdigest().encode() + END
    if data[-TAIL_BYTES:] != tail:
        raise CorruptCheckpointError(
            f"{place}: its {len(data)} bytes do not have the SHA-256 that stands at their end: it "
            f"is damaged, cut off, or no manifest of embstore"
        )
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{place} is not JSON: {error}") from None
    try:
        _check_version(document, place)
        return _manifest(document)
    except FieldError as error:
        raise CorruptCheckpointError(f"{place}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_version(document: object, place: str) -> None:
    top = fields.mapping(document, "the manifest")
    if top.get("format") != FORMAT:
        raise FieldError(f"format is {top.get('format')!r}; expected {FORMAT!r}")
    oldest = fields.integer(top, "min_reader_version", 1, fields.INT64_MAX)
    version = fields.integer(top, "format_version", 1, fields.INT64_MAX)
    if oldest > VERSION:
        raise CheckpointMismatchError(
            f"{place}: format version {version} needs a reader of version {oldest}; this embstore "
            f"reads version {VERSION}"
        )
    features = fields.array(top, "required_features")
    unknown = [name for name in features if not isinstance(name, str) or name not in FEATURES]
    if unknown:
        raise CheckpointMismatchError(
            f"{place} requires features that this embstore does not know: {unknown}"
        )
    if top.get("byte_order") != "little":
        raise CheckpointMismatchError(
            f"{place}: byte_order is {top.get('byte_order')!r}; only 'little' can be read"
        )


def _manifest(top: Mapping[str, Any]) -> Manifest:
    tables = tuple(_table(member) for member in fields.array(top, "tables"))
    fields.check_unique("table", [table.name for table in tables])
    files = tuple(_file(member, tables) for member in fields.array(top, "files"))
    fields.check_unique("file", [file.name for file in files])
    store, extra = top.get("store"), top.get("extra")
    values: dict[str, Any] | None = None
    arrays: tuple[ArrayEntry, ...] = ()
    if extra is not None:
        extra = fields.mapping(extra, "extra")
        values = fields.mapping(extra.get("values"), "extra's values")
        arrays = tuple(_array(member) for member in fields.array(extra, "arrays"))
        fields.check_unique("extra array", [array.name for array in arrays] + list(values))
    manifest = Manifest(
        generation=fields.integer(top, "generation", 1, fields.INT64_MAX),
        tables=tables,
        files=files,
        store=None if store is None else fields.mapping(store, "store"),
        values=values,
        arrays=arrays,
    )
    _check_totals(top, manifest)
    return manifest


def _table(value: object) -> TableEntry:
    member = fields.mapping(value, "a table")
    dtype = fields.choice(member, "dtype", ("float32", "float16", "bfloat16"))
    slots = []
    for slot in fields.array(member, "slots"):
        name, width = fields.items(slot, 2, "a slot")
        pair = {"name": name, "width": width}
        slots.append((fields.text(pair, "name"), fields.integer(pair, "width", 1, 4096)))
    return TableEntry(
        name=fields.text(member, "name"),
        dim=fields.integer(member, "dim", 1, 4096),
        dtype=dtype,
        slots=tuple(slots),
        config=fields.mapping(member.get("config"), "config"),
        state=fields.state(fields.mapping(member.get("state"), "state")),
        n_nonfinite_rows=fields.integer(member, "nonfinite_rows", 0, fields.INT64_MAX),
        bloom_blocks=fields.integer(member, "bloom_blocks", 0, fields.INT64_MAX),
    )


def _file(value: object, tables: tuple[TableEntry, ...]) -> FileEntry:
    member = fields.mapping(value, "a file")
    kind = fields.choice(member, "kind", ("rows", "candidates", "bloom", "pins", "extra"))
    table = None
    if kind != "extra":
        table = fields.integer(member, "table", 0, len(tables) - 1)
    first, last = fields.items(member.get("partitions"), 2, "partitions")
    bounds = {"first": first, "last": last}
    file = FileEntry(
        name=fields.file_name(member),
        kind=kind,
        table=table,
        first=fields.integer(bounds, "first", 0, 255),
        last=fields.integer(bounds, "last", first, 255),
        sections=tuple(fields.section(section) for section in fields.array(member, "sections")),
    )
    for name, found in (("rows", file.n_rows), ("bytes", file.n_bytes)):
        if fields.integer(member, name, 0, fields.INT64_MAX) != found:
            raise FieldError(f"{file.name}: {name} is not the sum over its sections, {found}")
    blocks = file.sections[1:-1]
    if len(file.sections) < 2 or file.n_rows != sum(b.n_rows for b in blocks):
        raise FieldError(f"{file.name}: its sections are not a header, blocks and a footer")
    if any(block.n_rows == 0 for block in blocks):
        raise FieldError(f"{file.name}: a block has no rows")
    return file


def _array(value: object) -> ArrayEntry:
    name, dtype, shape = fields.items(value, 3, "an array of extra")
    member = {"name": name, "dtype": dtype, "shape": shape}
    sizes = tuple(
        fields.integer({"size": size}, "size", 0, fields.INT64_MAX)
        for size in fields.array(member, "shape")
    )
    return ArrayEntry(
        fields.text(member, "name"), fields.choice(member, "dtype", fields.EXTRA_DTYPES), sizes
    )


def _check_totals(top: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise unless the sums agree, and the files of a kind hold ascending partitions."""
    if fields.integer(top, "step", 0, fields.INT64_MAX) != manifest.step:
        raise FieldError("step is not the greatest of the tables")
    for index, member in enumerate(top["tables"]):
        for kind in ("rows", "candidates", "pins"):
            n_rows = manifest.n_rows(index, kind)
            if fields.integer(member, kind, 0, fields.INT64_MAX) != n_rows:
                raise FieldError(f"table {index}: {kind} is not the sum over its files, {n_rows}")
        for kind in ("rows", "candidates", "bloom", "pins"):
            files = manifest.files_of(index, kind)
            for before, after in pairwise(files):
                if before.last >= after.first:
                    raise FieldError(f"{before.name} and {after.name}: partitions overlap")
        n_blocks = 256 * manifest.tables[index].bloom_blocks
        if manifest.n_rows(index, "bloom") != n_blocks:
            raise FieldError(f"table {index}: its files do not hold {n_blocks} bloom blocks")
    if len(manifest.files_of(None, "extra")) > 1:
        raise FieldError("extra has more than one file")
