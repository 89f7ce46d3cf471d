"""A reader of checkpoints written from docs/format.md alone: the standard library and pyarrow.

`read(path)` gives plain Python objects; ValueError is raised if a rule of the page does not hold.
"""

import hashlib
import json
import math
import pathlib
import zlib

import pyarrow as pa

MASK = 2**64 - 1
VALUES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}


def require(holds, what):
    if not holds:
        raise ValueError(what)


def partition(key):
    z = (key + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return (z ^ z >> 31) >> 56


def schema_of(kind, table):
    def list_of(item, width):
        return pa.list_(pa.field("item", item, nullable=False), width)

    fields = {"pins": [("key", pa.int64())], "extra": [("byte", pa.uint8())]}
    fields["candidates"] = [*fields["pins"], ("count", pa.uint32()), ("epoch", pa.int64())]
    fields["bloom"] = [("block", list_of(pa.uint8(), 64))]
    if kind == "rows":
        n_slots = sum(width for _, width in table["slots"])
        slots = [("slots", list_of(pa.float32(), n_slots))] if n_slots else []
        values = ("values", list_of(VALUES[table["dtype"]], table["dim"]))
        fields["rows"] = [("key", pa.int64()), values, *slots]
        fields["rows"] += [("freq", pa.uint32()), ("step", pa.int64())]
    return pa.schema([pa.field(name, item, nullable=False) for name, item in fields[kind]])


def read_file(path, entry, table):
    """Return the columns of a data file as lists, or bytes."""
    data = pathlib.Path(path, entry["name"]).read_bytes()
    offset = 0
    for n_bytes, _, crc in entry["sections"]:
        seed = zlib.crc32(entry["name"].encode() + b"\0" + offset.to_bytes(8, "little"))
        found = zlib.crc32(data[offset : offset + n_bytes], seed)
        require(f"{found:08x}" == crc, f"{entry['name']}, offset {offset}: checksum")
        offset += n_bytes
    require(offset == len(data) == entry["bytes"], f"{entry['name']}: size")
    content = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    require(content.schema.equals(schema_of(entry["kind"], table)), f"{entry['name']}: schema")
    require(content.num_rows == entry["rows"], f"{entry['name']}: rows")
    columns = content.to_pydict()
    if "key" in columns:
        keys = [(partition(key), key) for key in columns["key"]]
        first, last = entry["partitions"]
        require(keys == sorted(set(keys)), f"{entry['name']}: order")
        require(all(first <= p <= last for p, _ in keys), f"{entry['name']}: partitions")
    return columns


def read_extra(extra, data):
    arrays, at = {}, 0
    for name, dtype, shape in extra["arrays"]:
        kind = pa.type_for_alias("uint8" if dtype == "bool" else dtype)
        size = math.prod(shape)
        buffer = data[at : at + size * kind.bit_width // 8]
        flat = pa.Array.from_buffers(kind, size, [None, pa.py_buffer(buffer)])
        arrays[name] = (dtype, shape, flat.to_pylist())
        at += len(buffer)
    require(at == len(data), "extra: bytes")
    return {"values": extra["values"], "arrays": arrays}


def read(path):
    raw = pathlib.Path(path, "manifest.json").read_bytes()
    digest = hashlib.sha256(raw[:-80]).hexdigest().encode()
    require(raw[-80:] == b',\n"sha256":"' + digest + b'"\n}\n', "manifest: SHA-256")
    manifest = json.loads(raw)
    require(manifest["format"] == "embstore-checkpoint", "format")
    require(manifest["min_reader_version"] <= 1 and not manifest["required_features"], "version")
    tables = {table["name"]: {"about": table} for table in manifest["tables"]}
    extra_bytes = b""
    for entry in manifest["files"]:
        table = None if entry["table"] is None else manifest["tables"][entry["table"]]
        columns = read_file(path, entry, table)
        if table is None:
            extra_bytes += bytes(columns["byte"])
            continue
        into = tables[table["name"]].setdefault(entry["kind"], {name: [] for name in columns})
        for name, column in columns.items():
            into[name] += column
    extra = manifest["extra"] and read_extra(manifest["extra"], extra_bytes)
    return {"tables": tables, "extra": extra, "store": manifest["store"]}
