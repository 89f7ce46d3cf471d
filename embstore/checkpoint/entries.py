"""What a manifest lists: tables and their layers, data files, and the arrays of extra.

Each has a member of the JSON document; `*_member` writes it, `*_of` reads and checks it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

LAYER_KINDS = ("deleted", "rows")  # what each layer of a table has files of
KINDS = ("rows", "candidates", "bloom", "pins", "deleted", "extra")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one save wrote of a table: all rows, or those of a delta.

    Attributes
    ----------
    generation : int
        The save that wrote it.
    step, step_base : int
        The table's clocks then; the steps of its rows lie between.
    n_rows, n_deleted : int
        Rows it puts, and keys it removes first.
    n_nonfinite_rows : int
        Of those rows, how many have NaN or infinity.
    """

    generation: int
    step: int
    step_base: int
    n_rows: int
    n_deleted: int
    n_nonfinite_rows: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A data file. `table` is None for extra; partitions are those its keys may have.

    `sha256` is of all its bytes, in hexadecimal, where the manifest is signed.
    """

    name: str
    kind: str
    table: int | None
    first: int
    last: int
    sections: tuple[Section, ...]
    layer: int = 0
    sha256: str | None = None

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
    """A table: what its rows look like, its parameters, its clocks and totals.

    `layers` is empty unless there are deltas. `n_rows` are those it has now; `n_nonfinite_rows` is
    the sum over its layers, so that fewer may be left.
    """

    name: str
    dim: int
    dtype: str
    slots: Slots
    config: dict[str, Any]
    state: dict[str, int | float]
    n_rows: int = 0
    n_nonfinite_rows: int = 0
    bloom_blocks: int = 0  # 64-byte blocks of each sub-filter
    layers: tuple[Layer, ...] = ()

    def columns(self, kind: str) -> Columns:
        """Return the columns of the table's files of `kind`."""
        if kind == "rows":
            return row_columns(self.dim, self.dtype, self.slots)
        return {
            "candidates": CANDIDATE_COLUMNS,
            "bloom": BLOOM_COLUMNS,
            "pins": PIN_COLUMNS,
            "deleted": PIN_COLUMNS,
        }[kind]

    def all_layers(self, generation: int) -> tuple[Layer, ...]:
        """Return the layers; one, of the save of `generation`, where there are no deltas."""
        if self.layers:
            return self.layers
        clocks = int(self.state["step"]), int(self.state["step_base"])
        return (Layer(generation, *clocks, self.n_rows, 0, self.n_nonfinite_rows),)

    def as_of(self, layer: Layer) -> "TableEntry":
        """Return the table with the clocks and counts by which the rows of `layer` are checked."""
        return replace(
            self,
            state={**self.state, "step": layer.step, "step_base": layer.step_base},
            n_rows=layer.n_rows,
            n_nonfinite_rows=layer.n_nonfinite_rows,
            layers=(),
        )


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """An array of extra; its bytes follow those of the array before."""

    name: str
    dtype: str
    shape: tuple[int, ...]


# ---- tables


def table_member(table: TableEntry, n_candidates: int, n_pins: int) -> dict[str, Any]:
    """Return what the manifest says of a table."""
    member = {
        "name": table.name,
        "dim": table.dim,
        "dtype": table.dtype,
        "slots": [list(slot) for slot in table.slots],
        "rows": table.n_rows,
        "nonfinite_rows": table.n_nonfinite_rows,
        "candidates": n_candidates,
        "pins": n_pins,
        "bloom_blocks": table.bloom_blocks,
        "config": table.config,
        "state": fields.state_member(table.state),
    }
    if table.layers:
        member["layers"] = [_layer_member(layer) for layer in table.layers]
    return member


def _layer_member(layer: Layer) -> dict[str, int]:
    return {
        "generation": layer.generation,
        "step": layer.step,
        "step_base": layer.step_base,
        "rows": layer.n_rows,
        "deleted": layer.n_deleted,
        "nonfinite_rows": layer.n_nonfinite_rows,
    }


def table_of(value: object) -> TableEntry:
    """Return a table from its member."""
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
        n_rows=fields.count(member, "rows"),
        n_nonfinite_rows=fields.count(member, "nonfinite_rows"),
        bloom_blocks=fields.count(member, "bloom_blocks"),
        layers=_layers_of(member) if "layers" in member else (),
    )


def _layers_of(member: Mapping[str, Any]) -> tuple[Layer, ...]:
    layers = tuple(_layer_of(value) for value in fields.array(member, "layers"))
    if len(layers) < 2:
        raise FieldError(f"layers has {len(layers)} of them; a table with deltas has 2 or more")
    generations = [layer.generation for layer in layers]
    if generations != sorted(set(generations)):
        raise FieldError(f"the generations of layers, {generations}, do not ascend")
    if layers[0].n_deleted:
        raise FieldError("the first layer has deleted keys")
    return layers


def _layer_of(value: object) -> Layer:
    member = fields.mapping(value, "a layer")
    base = fields.count(member, "step_base")
    return Layer(
        generation=fields.integer(member, "generation", 1, fields.INT64_MAX),
        step=fields.integer(member, "step", base, fields.INT64_MAX),
        step_base=base,
        n_rows=fields.count(member, "rows"),
        n_deleted=fields.count(member, "deleted"),
        n_nonfinite_rows=fields.count(member, "nonfinite_rows"),
    )


# ---- files


def file_member(file: FileEntry) -> dict[str, Any]:
    """Return what the manifest says of a data file; a layer of 0 and no SHA-256 are left out."""
    return {
        "name": file.name,
        "kind": file.kind,
        "table": file.table,
        **({"layer": file.layer} if file.layer else {}),
        "partitions": [file.first, file.last],
        "rows": file.n_rows,
        "bytes": file.n_bytes,
        "sections": [[s.n_bytes, s.n_rows, f"{s.crc:08x}"] for s in file.sections],
        **({"sha256": file.sha256} if file.sha256 is not None else {}),
    }


def file_of(value: object, tables: tuple[TableEntry, ...]) -> FileEntry:
    """Return a data file of one of `tables` from its member."""
    member = fields.mapping(value, "a file")
    kind = fields.choice(member, "kind", KINDS)
    table, n_layers = None, 1
    if kind != "extra":
        table = fields.integer(member, "table", 0, len(tables) - 1)
    elif member.get("table") is not None:
        raise FieldError("the file of extra belongs to no table: its table must be null")
    if kind in LAYER_KINDS and table is not None:
        n_layers = max(1, len(tables[table].layers))
        if kind == "deleted" and n_layers == 1:
            raise FieldError(f"table {table} has deleted keys and no layers")
    first, last = fields.items(member.get("partitions"), 2, "partitions")
    bounds = {"first": first, "last": last}
    file = FileEntry(
        name=fields.file_name(member),
        kind=kind,
        table=table,
        first=fields.integer(bounds, "first", 0, 255),
        last=fields.integer(bounds, "last", first, 255),
        sections=tuple(fields.section(section) for section in fields.array(member, "sections")),
        layer=fields.integer({"layer": 0, **member}, "layer", int(kind == "deleted"), n_layers - 1),
        sha256=fields.sha256(member) if "sha256" in member else None,
    )
    _check_sections(file, member)
    return file


def _check_sections(file: FileEntry, member: Mapping[str, Any]) -> None:
    """Raise unless the sections of a file are its rows and bytes."""
    for name, found in (("rows", file.n_rows), ("bytes", file.n_bytes)):
        if fields.count(member, name) != found:
            raise FieldError(f"{file.name}: {name} is not the sum over its sections, {found}")
    blocks = file.sections[1:-1]
    if len(file.sections) < 2 or file.n_rows != sum(b.n_rows for b in blocks):
        raise FieldError(f"{file.name}: its sections are not a header, blocks and a footer")
    if any(block.n_rows == 0 for block in blocks):
        raise FieldError(f"{file.name}: a block has no rows")


# ---- extra


def array_member(array: ArrayEntry) -> list[Any]:
    """Return what the manifest says of an array of extra."""
    return [array.name, array.dtype, list(array.shape)]


def array_of(value: object) -> ArrayEntry:
    """Return an array of extra from its member."""
    name, dtype, shape = fields.items(value, 3, "an array of extra")
    member = {"name": name, "dtype": dtype, "shape": shape}
    sizes = tuple(
        fields.integer({"size": size}, "size", 0, fields.INT64_MAX)
        for size in fields.array(member, "shape")
    )
    return ArrayEntry(
        fields.text(member, "name"), fields.choice(member, "dtype", fields.EXTRA_DTYPES), sizes
    )
