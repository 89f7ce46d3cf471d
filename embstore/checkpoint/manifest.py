"""The manifest: what a checkpoint holds, the only place that says so, and the only commit point.

1. It is JSON whose last member is the SHA-256 of all bytes before that member.
2. What `parse` returns has been checked: types, ranges, names without a path, files that tile.
3. Floats of a state are written in hexadecimal, so that they are exact in every language.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from embstore.checkpoint import entries, fields, signing
from embstore.checkpoint.entries import ArrayEntry, FileEntry, Layer, TableEntry
from embstore.checkpoint.fields import FieldError
from embstore.errors import CheckpointMismatchError, CorruptCheckpointError

NAME = "manifest.json"
TEMPORARY_NAME = "manifest.json.tmp"
FORMAT = "embstore-checkpoint"
VERSION = 1
DELTAS = "deltas"
FEATURES = frozenset({DELTAS})  # flags of required_features that this reader knows
MAX_BYTES = 1 << 26

DIGEST_MEMBER = b',\n"sha256":"'
END = b'"\n}\n'
TAIL_BYTES = len(DIGEST_MEMBER) + 64 + len(END)


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint. `values` and `arrays` are the two parts of extra.

    `digest` is the SHA-256 of the bytes that it was read from, in hexadecimal.
    """

    generation: int
    tables: tuple[TableEntry, ...]
    files: tuple[FileEntry, ...]
    store: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    arrays: tuple[ArrayEntry, ...] = ()
    digest: str = field(default="", compare=False)

    @property
    def step(self) -> int:
        """The greatest step of any table."""
        return max((int(table.state["step"]) for table in self.tables), default=0)

    @property
    def n_deltas(self) -> int:
        """Layers of each table on top of the first."""
        return max((len(table.layers) - 1 for table in self.tables if table.layers), default=0)

    @cached_property
    def _files_by_kind(self) -> dict[tuple[int | None, str, int], list[FileEntry]]:
        files: dict[tuple[int | None, str, int], list[FileEntry]] = {}
        for file in self.files:
            files.setdefault((file.table, file.kind, file.layer), []).append(file)
        return files

    def files_of(self, table: int | None, kind: str, layer: int = 0) -> list[FileEntry]:
        """Return the files of one kind of a table, by partition; of one layer if it has several."""
        return self._files_by_kind.get((table, kind, layer), [])

    def n_rows(self, table: int | None, kind: str, layer: int = 0) -> int:
        """Return the rows in those files."""
        return sum(file.n_rows for file in self.files_of(table, kind, layer))

    def layers(self, table: int) -> tuple[Layer, ...]:
        """Return the layers of a table, at least one."""
        return self.tables[table].all_layers(self.generation)

    def layer_files(self, table: int, layer: int) -> list[FileEntry]:
        """Return the files of rows and deleted keys of one layer of a table."""
        kinds = entries.LAYER_KINDS
        return [file for kind in kinds for file in self.files_of(table, kind, layer)]

    def layer_bytes(self, is_delta: bool) -> int:
        """Return the bytes of such files of all first layers, or of all others."""
        return sum(
            file.n_bytes
            for file in self.files
            if file.kind in entries.LAYER_KINDS and (file.layer > 0) == is_delta
        )


def encode(manifest: Manifest, hmac_key: bytes | None = None) -> bytes:
    """Return the bytes of a manifest, one line for each table and file; signed if given a key."""
    members = {
        "format": FORMAT,
        "format_version": VERSION,
        "min_reader_version": VERSION,
        "required_features": [DELTAS] if manifest.n_deltas else [],
        "byte_order": "little",
        "generation": manifest.generation,
        "step": manifest.step,
        "store": manifest.store,
        "extra": _extra_member(manifest),
    }
    lines = [f'"{name}":{_json(value)}' for name, value in members.items()]
    tables = [_json(_table_member(manifest, i)) for i in range(len(manifest.tables))]
    files = [_json(entries.file_member(file)) for file in manifest.files]
    lines += [f'"tables":[\n{_lines(tables)}]', f'"files":[\n{_lines(files)}]']
    body = ("{\n" + ",\n".join(lines)).encode()
    if hmac_key is not None:
        body += signing.member_of(body, hmac_key)
    return body + DIGEST_MEMBER + hashlib.sha256(body).hexdigest().encode() + END


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _lines(members: list[str]) -> str:
    return ",\n".join(members) + "\n" if members else ""


def _table_member(manifest: Manifest, index: int) -> dict[str, Any]:
    n_candidates, n_pins = (manifest.n_rows(index, kind) for kind in ("candidates", "pins"))
    return entries.table_member(manifest.tables[index], n_candidates, n_pins)


def _extra_member(manifest: Manifest) -> dict[str, Any] | None:
    if manifest.values is None:
        return None
    arrays = [entries.array_member(array) for array in manifest.arrays]
    return {"values": manifest.values, "arrays": arrays}


def decode(data: bytes, place: str, hmac_key: bytes | None = None) -> Manifest:
    """Return the manifest with these bytes; `place` stands in messages.

    With a key it must be signed, and without one a signature is passed over.

    Raises
    ------
    CorruptCheckpointError
        If a byte of it was changed, or it says what cannot be.
    CheckpointMismatchError
        If it is sound and this version cannot read it.
    """
    digest = hashlib.sha256(data[:-TAIL_BYTES]).hexdigest()
    if data[-TAIL_BYTES:] != DIGEST_MEMBER + digest.encode() + END:
        raise CorruptCheckpointError(
            f"{place}: its {len(data)} bytes do not have the SHA-256 that stands at their end: it "
            f"is damaged, cut off, or no manifest of embstore"
        )
    if hmac_key is not None and not is_signed(data, hmac_key):
        raise CorruptCheckpointError(
            f"{place} is not signed with the key given: its hmac_sha256 is missing or wrong"
        )
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{place} is not JSON: {error}") from None
    try:
        _check_version(document, place)
        manifest = replace(_manifest(document), digest=digest)
        _check_hashes(manifest, is_due=hmac_key is not None)
    except FieldError as error:
        raise CorruptCheckpointError(f"{place}: {error}") from None
    return manifest


def is_signed(data: bytes, hmac_key: bytes) -> bool:
    """Return whether the manifest with these bytes is signed with a key."""
    return signing.is_signed(data[:-TAIL_BYTES], hmac_key)


def _check_hashes(manifest: Manifest, is_due: bool) -> None:
    unhashed = [file.name for file in manifest.files if file.sha256 is None]
    if is_due and unhashed:
        raise FieldError(f"it is signed, and has no sha256 of {unhashed[0]}")


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
    tables = tuple(entries.table_of(member) for member in fields.array(top, "tables"))
    fields.check_unique("table", [table.name for table in tables])
    files = tuple(entries.file_of(member, tables) for member in fields.array(top, "files"))
    fields.check_unique("file", [file.name for file in files])
    store, extra = top.get("store"), top.get("extra")
    values: dict[str, Any] | None = None
    arrays: tuple[ArrayEntry, ...] = ()
    if extra is not None:
        extra = fields.mapping(extra, "extra")
        values = fields.mapping(extra.get("values"), "extra's values")
        arrays = tuple(entries.array_of(member) for member in fields.array(extra, "arrays"))
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


def _check_totals(top: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise unless the sums agree, and the files of a kind hold ascending partitions."""
    if fields.integer(top, "step", 0, fields.INT64_MAX) != manifest.step:
        raise FieldError("step is not the greatest of the tables")
    for index, member in enumerate(top["tables"]):
        for kind in ("candidates", "pins"):
            _check_count(member, kind, manifest.n_rows(index, kind), f"table {index}")
        n_blocks = 256 * manifest.tables[index].bloom_blocks
        if manifest.n_rows(index, "bloom") != n_blocks:
            raise FieldError(f"table {index}: its files do not hold {n_blocks} bloom blocks")
        if manifest.tables[index].layers:
            _check_layers(member, manifest, index)
        else:
            _check_count(member, "rows", manifest.n_rows(index, "rows"), f"table {index}")
    _check_order(manifest)
    _check_chain(top, manifest)


def _check_count(member: Mapping[str, Any], name: str, found: int, where: str) -> None:
    if fields.count(member, name) != found:
        raise FieldError(f"{where}: {name} is not the sum over its files, {found}")


def _check_order(manifest: Manifest) -> None:
    """Raise unless the files of a kind are listed by ascending, disjoint partitions."""
    last: dict[tuple[int | None, str, int], FileEntry] = {}
    for file in manifest.files:
        group = (file.table, file.kind, file.layer)
        before = last.get(group)
        if before is not None and file.kind == "extra":
            raise FieldError("extra has more than one file")
        if before is not None and before.last >= file.first:
            raise FieldError(f"{before.name} and {file.name}: partitions overlap")
        last[group] = file


def _check_layers(member: Mapping[str, Any], manifest: Manifest, index: int) -> None:
    """Raise unless the layers of a table have the rows of their files, and end at its clocks."""
    table = manifest.tables[index]
    for i, own in enumerate(member["layers"]):
        for kind in entries.LAYER_KINDS:
            found = manifest.n_rows(index, kind, i)
            _check_count(own, kind, found, f"table {index}, layer {i}")
    newest = table.layers[-1]
    if (newest.step, newest.step_base) != (table.state["step"], table.state["step_base"]):
        raise FieldError(f"table {index}: its last layer has not the steps of its state")
    if table.n_nonfinite_rows != sum(layer.n_nonfinite_rows for layer in table.layers):
        raise FieldError(f"table {index}: nonfinite_rows is not the sum over its layers")
    most = sum(layer.n_rows for layer in table.layers)
    if not newest.n_rows <= table.n_rows <= most:
        raise FieldError(
            f"table {index}: rows is {table.n_rows}; its layers leave {newest.n_rows} to {most}"
        )


def _check_chain(top: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise unless all tables have layers of the same saves, the last of them this one."""
    chains = {tuple(layer.generation for layer in table.layers) for table in manifest.tables}
    has_deltas = bool(chains - {()})
    if has_deltas != (DELTAS in top["required_features"]):
        raise FieldError("required_features has 'deltas' without layers, or layers without it")
    if has_deltas and (len(chains) > 1 or max(chains)[-1] != manifest.generation):
        raise FieldError("the tables have not layers of the same generations, up to this one")
