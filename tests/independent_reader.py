"""`read(path)`: a reader of checkpoints written from docs/format.md alone; ValueError if bad."""

import hashlib
import json
import math
import pathlib
import zlib

import pyarrow as pa


def require(holds, what):
    if not holds:
        raise ValueError(what)


def place(key):
    z = (key + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z ^ z >> 31) >> 56, key  # partition and key


def schema_of(kind, table):
    fields = {"extra": [("byte", "uint8", 0)], "bloom": [("block", "uint8", 64)]}
    fields = fields.get(kind, [("key", "int64", 0)])
    if kind == "candidates":
        fields += [("count", "uint32", 0), ("epoch", "int64", 0)]
    if kind == "rows":
        n_slots = sum(width for _, width in table["slots"])
        fields += [("values", table["dtype"].replace("bfloat16", "uint16"), table["dim"])]
        fields += [("slots", "float32", n_slots)] if n_slots else []
        fields += [("freq", "uint32", 0), ("step", "int64", 0)]
    types = [pa.type_for_alias(item) for _, item, _ in fields]
    items = [pa.field("item", item, nullable=False) for item in types]
    types = [pa.list_(i, f[2]) if f[2] else t for i, t, f in zip(items, types, fields, strict=True)]
    return pa.schema([pa.field(f[0], t, False) for f, t in zip(fields, types, strict=True)])


def read_file(path, entry, table):
    name, data, offset = entry["name"], pathlib.Path(path, entry["name"]).read_bytes(), 0
    for n_bytes, _, crc in entry["sections"]:
        seed = zlib.crc32(name.encode() + b"\0" + offset.to_bytes(8, "little"))
        found = zlib.crc32(data[offset : offset + n_bytes], seed)
        require(f"{found:08x}" == crc, f"{name}, offset {offset}: checksum")
        offset += n_bytes
    require(offset == len(data) == entry["bytes"], f"{name}: size")
    content = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    is_right = content.schema.equals(schema_of(entry["kind"], table))
    require(is_right and content.num_rows == entry["rows"], f"{name}: schema or rows")
    columns, (first, last) = content.to_pydict(), entry["partitions"]
    places = [place(key) for key in columns.get("key", [])]
    require(places == sorted(set(places)), f"{name}: order")
    require(all(first <= p <= last for p, _ in places), f"{name}: partitions")
    return columns


def read_extra(extra, data):
    arrays, at = {}, 0
    for name, dtype, shape in extra["arrays"]:
        kind = pa.type_for_alias("uint8" if dtype == "bool" else dtype)
        buffer = data[at : at + math.prod(shape) * kind.bit_width // 8]
        flat = pa.Array.from_buffers(kind, math.prod(shape), [None, pa.py_buffer(buffer)])
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
    require(manifest["required_features"] in ([], ["deltas"]), "features")
    require(manifest["min_reader_version"] <= 1, "version")
    tables = [{"about": about} for about in [*manifest["tables"], {"rows": 0}]]  # -1: extra
    live, seen = [{} for _ in tables], set()
    for entry in sorted(manifest["files"], key=lambda entry: entry.get("layer", 0)):
        index = -1 if entry["table"] is None else entry["table"]
        columns = read_file(path, entry, tables[index]["about"])
        if entry["kind"] in ("rows", "deleted"):
            keys = {(index, entry.get("layer", 0), key) for key in columns["key"]}
            require(seen.isdisjoint(keys), "a key is twice in a layer")
            seen |= keys  # below, () stands for a row that was deleted
            live[index] |= {row[0]: row[1:] for row in zip(*columns.values(), strict=True)}
        into = tables[index].setdefault(entry["kind"], {})
        for name, column in columns.items():
            into.setdefault(name, []).extend(column)
    for table, merged in zip(tables, live, strict=True):
        names = table.pop("rows", {})
        rows = [(key, *merged[key]) for key in sorted(merged, key=place) if merged[key]]
        require(len(rows) == table["about"]["rows"], "rows after merging")
        if rows:
            table["rows"] = dict(zip(names, zip(*rows, strict=True), strict=True))
    extra = tables.pop().get("extra", {"byte": []})["byte"]
    extra = manifest["extra"] and read_extra(manifest["extra"], bytes(extra))
    by_name = {table["about"]["name"]: table for table in tables}
    return {"tables": by_name, "extra": extra, "store": manifest["store"]}
