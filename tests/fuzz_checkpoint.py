"""A fuzzer of checkpoints that knows their structure: every checksum of what it makes is right.

A child process reads what it made under a limit of memory: a typed error, or exactly what the
reader that was written from docs/format.md alone finds in it. Run by test_checkpoint_fuzz.py.
"""

import copy
import json
import os
import random
import resource
import signal
import struct
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import checkpoint_kit as kit
import independent_reader
import numpy as np
import pyarrow as pa

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import blocks
from embstore.cli._torture_program import new_store, train

MORE_BYTES = 96 << 20  # what a case may allocate beyond what reading the sound ones has taken
SECONDS_OF_A_CASE = 30
HOSTILE = [
    -1, 0, 1, 2, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    2**80, -(2**63), 1.5, -0.0, 1e308, True, None, "", "x", "../x.arrow", "/etc/passwd",
    "a/b.arrow", "manifest.json", "lock", "g00000001-x.arrow", "x" * 5000, "\u0000", [], {}, [[]],
    [1, 2, 3], {"a": 1}, "0x1.8p+0", "nan", "inf", "00000000", "float64", "object", "bfloat16",
]  # fmt: skip
NUMBERS = [0, 1, -1, 7, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63)]


# ---- sound checkpoints


def make_bases(folder):
    """Save the sound checkpoints that are mutated; return the files of each by name."""
    table = kit.memory_table(n=30, n_pending=6)
    filtered = kit.memory_table(n=5, n_pending=0, bloom_blocks=1, dtype="bfloat16", slots=())
    extra = {"x": np.arange(3), "flag": np.array([True]), "note": {"a": [1, "b"]}}
    checkpoint.save_tables(folder / "memory", {"t": table, "f": filtered}, extra)

    report = checkpoint.save_tables(folder / "chain", {"t": table})
    for seed in range(2):
        rng = np.random.default_rng(seed)
        table, changes = kit.changed_table(table, 6, 4, rng)
        report = kit.save_delta(folder / "chain", {"t": changes}, report.digest)

    store = new_store()
    for step in range(1, 9):
        train(store, step, 10)
    store.save(folder / "store", extra={"k": 1})
    return {path.name: kit.files_of(path) for path in sorted(folder.iterdir())}


# ---- mutations


def places_of(document):
    """Return (container, key) of all values of a JSON document."""
    found, todo = [], [document]
    while todo:
        container = todo.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            found.append((container, key))
            if isinstance(value, dict | list):
                todo.append(value)
    return found


def deep(depth, is_list):
    """Return a value nested so deep."""
    value = 1
    for _ in range(depth):
        value = [value] if is_list else {"a": value}
    return value


def mutate_document(document, rng):
    """Change one place of a manifest."""
    lists = [c[k] for c, k in places_of(document) if isinstance(c[k], list) and c[k]]
    how = rng.randrange(12)
    container, key = rng.choice(places_of(document))
    if how == 0 and isinstance(container, dict):
        del container[key]
    elif how == 1:
        chosen = rng.choice(lists)
        chosen.insert(rng.randrange(len(chosen) + 1), copy.deepcopy(rng.choice(chosen)))
    elif how == 2:
        chosen = rng.choice(lists)
        i, j = (rng.randrange(len(chosen)) for _ in range(2))
        chosen[i], chosen[j] = chosen[j], chosen[i]
    elif how == 3:
        rng.choice(lists).pop()
    elif how == 4 and rng.random() < 0.1:
        chosen = rng.choice(lists)
        chosen[:] = chosen * (2_000_000 // len(json.dumps(chosen)))
    elif how == 5:
        container[key] = deep(rng.choice([10, 500]), rng.random() < 0.5)
    elif how in (6, 7):
        numbers = [(c, k) for c, k in places_of(document) if type(c[k]) is int]
        container, key = rng.choice(numbers)
        container[key] += rng.choice([-1, 1, 2**31, 2**32, -(2**32), 2**63])
    elif how == 8:
        other, other_key = rng.choice(places_of(document))
        container[key] = copy.deepcopy(other[other_key])
    else:
        container[key] = rng.choice(HOSTILE)


def mutate_bytes(data, rng):
    """Change some numbers of a section; most of them lie in Arrow's message at its beginning."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        limit = len(data) if rng.random() < 0.3 else min(len(data), 400)
        if limit < 8:
            return bytes(data)
        width, kind = rng.choice([(1, "<b"), (2, "<h"), (4, "<i"), (8, "<q")])
        at = rng.randrange(0, limit - width + 1, rng.choice([1, width]))
        old = struct.unpack_from(kind, data, at)[0]
        new = rng.choice([*NUMBERS, old + 1, old - 1, old + 8, old * 2, rng.getrandbits(63)])
        struct.pack_into(f"<{kind[1].upper()}", data, at, new % (1 << 8 * width))
    return bytes(data)


def mutate_sections(sections, rng):
    """Change, swap, double, drop, cut or lengthen sections [(bytes, rows)] of a file."""
    i = rng.randrange(max(1, len(sections) - rng.randint(0, 1)))
    data, n_rows = sections[i]
    how = rng.randrange(10)
    if how == 0:
        j = rng.randrange(len(sections))
        sections[i], sections[j] = sections[j], sections[i]
    elif how == 1:
        sections.insert(i, sections[i])
    elif how == 2 and len(sections) > 1:
        del sections[i]
    elif how == 3:
        sections[i] = (data[: rng.randrange(len(data) + 1)], n_rows)
    elif how == 4:
        sections[i] = (data + rng.randbytes(rng.choice([1, 8, 64])), n_rows)
    elif how == 5:
        sections[i] = (data, n_rows + rng.choice([-1, 1, 2**31, 2**62]))
    else:
        sections[i] = (mutate_bytes(data, rng), n_rows)


def mutate_file(files, document, rng):
    """Change one data file, and what the manifest says of it, with right checksums and sums."""
    entry = rng.choice(document["files"])
    name, offset, sections = entry["name"], 0, []
    for n_bytes, n_rows, _ in entry["sections"]:
        sections.append((files[name][offset : offset + n_bytes], n_rows))
        offset += n_bytes
    n_before = entry["rows"]
    mutate_sections(sections, rng)
    offset, listed = 0, []
    for data, n_rows in sections:
        crc = blocks.zlib.crc32(data, blocks.section_seed(name, offset))
        listed.append([len(data), n_rows, f"{crc:08x}"])
        offset += len(data)
    files[name] = b"".join(data for data, _ in sections)
    entry["sections"], entry["bytes"] = listed, offset
    entry["rows"] = sum(n_rows for _, n_rows in sections)
    table = {} if entry["table"] is None else document["tables"][entry["table"]]
    holders = [table, *table.get("layers", [])]
    for holder in holders:
        if holder.get(entry["kind"]) == n_before and rng.random() < 0.9:
            holder[entry["kind"]] = entry["rows"]


def mutate_names(path, rng):
    """Put a link, a pipe or a folder in the place of a file."""
    file = rng.choice(sorted(p for p in path.iterdir() if p.is_file()))
    how = rng.choice(["symlink", "pipe", "folder", "loop", "gone"])
    moved = path / "moved"
    file.rename(moved)
    if how == "symlink":
        file.symlink_to(moved)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)


def write_case(path, base, rng):
    """Write a mutated checkpoint into an empty folder."""
    files = dict(base)
    (path / "manifest.json").write_bytes(files["manifest.json"])
    document = kit.read_manifest(path)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.5 and document.get("files"):
            mutate_file(files, document, rng)
        else:
            mutate_document(document, rng)
            break  # what it says of files may no longer be what they are
    for name, data in files.items():
        (path / name).write_bytes(data)
    kit.write_manifest(path, document)
    if rng.random() < 0.03:
        mutate_names(path, rng)


# ---- what must hold


def columns_of(blocks_, names):
    """Return named columns of blocks as lists."""
    blocks_ = list(blocks_)
    return {name: [x for block in blocks_ for x in getattr(block, name).tolist()] for name in names}


def difference(path):
    """Read a checkpoint in both ways; return where they differ, or None.

    The other reader goes by the footers of Arrow, which ours has no need of: what it cannot read
    at all is not compared.
    """
    try:
        expected = independent_reader.read(path)
    except (ValueError, OSError, LookupError, TypeError, pa.ArrowException):
        return None
    with checkpoint.load_tables(path) as loaded:
        if sorted(loaded.tables) != sorted(expected["tables"]):
            return f"tables {sorted(loaded.tables)}"
        for name, table in loaded.tables.items():
            told = expected["tables"][name]
            rows = columns_of(table.rows(), ("keys", "values", "freq", "step"))
            for mine, theirs in zip(rows, ("key", "values", "freq", "step"), strict=True):
                wanted = told["rows"][theirs] if "rows" in told else []
                if not np.array_equal(rows[mine], wanted, equal_nan=True):
                    return f"table {name!r}: {mine}"
            if table.pins.tolist() != sorted(told.get("pins", {"key": []})["key"]):
                return f"table {name!r}: pins"
            found = columns_of(table.candidates(), ("keys", "counts", "epochs"))
            wanted = list(told["candidates"].values()) if "candidates" in told else [[], [], []]
            if list(found.values()) != wanted:
                return f"table {name!r}: candidates"
    return None


def check(path, name):
    """Read a mutated checkpoint in all ways; return how that ended; raise if it does harm."""
    outcome = "loaded"
    try:
        checkpoint.inspect(path)
        checkpoint.verify(path)
        if name == "memory":
            fault = difference(path)
            assert fault is None, fault
    except es.CheckpointError:
        outcome = "refused"
    if name == "store":
        try:
            with es.Store.load(path, allow_nonfinite=True) as store:
                for table in store:
                    sum(len(rows) for rows in store[table].export())
        except es.EmbstoreError:
            pass
    return outcome


@contextmanager
def limited_memory():
    """Allow no more than MORE_BYTES beyond what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def empty(path):
    """Make a folder that is empty."""
    path.mkdir(exist_ok=True)
    for file in path.iterdir():
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink()


def main(folder, seed, first, n_cases):
    """Run cases; print how each kind ended. The number of the one that runs is in `current`."""
    folder = Path(folder)
    (folder / "bases").mkdir()
    bases = make_bases(folder / "bases")
    for name in bases:
        assert check(folder / "bases" / name, name) == "loaded", name
    warnings.simplefilter("ignore")
    current = os.open(folder / "current", os.O_WRONLY | os.O_CREAT)
    counts = {}
    for case in range(first, first + n_cases):
        os.pwrite(current, f"{case:10}".encode(), 0)
        signal.alarm(SECONDS_OF_A_CASE)
        rng = random.Random(f"{seed}/{case}")
        name = rng.choice(sorted(bases))
        path = folder / "case"
        empty(path)
        write_case(path, bases[name], rng)
        with limited_memory():
            key = f"{name} {check(path, name)}"
        counts[key] = counts.get(key, 0) + 1
    for key, count in sorted(counts.items()):
        print(count, key)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
