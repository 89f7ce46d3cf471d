"""``embstore explain``: what a checkpoint knows of a key, and what its policies do with it."""

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from embstore import BloomAdmission
from embstore.checkpoint import CandidateBlock, LoadedCheckpoint, LoadedTable, RowBlock
from embstore.checkpoint.files import CheckpointFiles
from embstore.cli._bloom import estimate, fixed_hash
from embstore.cli._checkpoint import add_table, opened_table, step_of, understanding
from embstore.cli._report import count
from embstore.cli._rows import ages, json_number, norms, widened
from embstore.cli._verdict import Verdict, judge
from embstore.errors import DataError, InternalError

N_SHOWN = 8
UINT64 = 2**64


def key_of(text: str) -> int:
    """Read a key: an integer, or 0x and the hexadecimal digits of its 64 bits."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text):
        number = int(text, 16)
    elif re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII):
        number = int(text)
    else:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer, or 0x and up to 16 digits")
    if not -(2**63) <= number < UINT64:
        raise argparse.ArgumentTypeError(f"{text} has more than 64 bits")
    return number - UINT64 if number >= 2**63 else number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("key", type=key_of, help="an integer, or 0x and its 64 bits")
    add_table(parser)


def run(options: argparse.Namespace) -> int:
    """Explain one key; only the files of its partition are read."""
    with opened_table(options) as (loaded, table):
        with understanding(table):
            found = explained(table, options.key)
        if found["row"]:
            found["row"] |= _place(loaded, table, options.key)
        found = {"checkpoint": loaded.path, **found}
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0


def explained(table: LoadedTable, key: int) -> dict[str, Any]:
    """Return what a table of a checkpoint knows of a key, as a dict for JSON."""
    partition = fixed_hash(key % UINT64) >> 56
    row = _row(table, key, partition)
    candidate = None if row else _candidate(table, key, partition)
    verdict = None
    if row and table.config.get("eviction"):
        norm = np.float32(row["norm"])  # exact: it was a float32
        verdict = judge(table.config["eviction"], row["age"], row["freq"], norm)
    bloom = _bloom(table, key, partition)
    is_pinned = bool(np.isin(key, table.pins))
    return {
        "table": table.name,
        "dim": table.dim,
        "key": key,
        "hex": f"0x{key % UINT64:016x}",
        "partition": partition,
        "status": "live" if row else "pending" if candidate else "unknown",
        "is_pinned": is_pinned,
        "step": step_of(table),
        "row": row,
        "candidate": candidate,
        "bloom": bloom,
        "admission": _admission_text(table.config.get("admission"), row, candidate, bloom),
        "eviction": _eviction(verdict, row, is_pinned),
    }


def _at(block: RowBlock | CandidateBlock, key: int) -> int | None:
    """Return where a key stands in a block of its partition alone."""
    at = int(np.searchsorted(block.keys, key))
    return at if at < len(block.keys) and block.keys[at] == key else None


def _row(table: LoadedTable, key: int, partition: int) -> dict[str, Any] | None:
    found = None
    for block in table.rows(partition, partition):  # to the end, where files are checked
        at = _at(block, key)
        if at is not None:
            found = _row_document(table, block, at)
    return found


def _row_document(table: LoadedTable, block: RowBlock, at: int) -> dict[str, Any]:
    slots, begin = {}, 0
    for name, width in table.slots:
        slots[name] = _first_numbers(block.slots[at, begin : begin + width])
        begin += width
    return {
        "freq": int(block.freq[at]),
        "step": int(block.step[at]),
        "age": int(ages(block.step[at : at + 1], step_of(table))[0]),
        "norm": json_number(norms(block.values[at : at + 1])[0]),
        "values": _first_numbers(widened(block.values[at])),
        "slots": slots,
    }


def _first_numbers(numbers: Any) -> list[float | str]:
    return [json_number(number) for number in numbers[:N_SHOWN]]


def _candidate(table: LoadedTable, key: int, partition: int) -> dict[str, Any] | None:
    found = None
    for block in table.candidates(partition, partition):
        at = _at(block, key)
        if at is not None:
            found = {"count": int(block.counts[at]), "epoch": int(block.epochs[at])}
    ttl = (table.config.get("admission") or {}).get("candidate_ttl")
    if found and ttl:
        grain = max(1, ttl // 16)
        found["seen_from_step"] = found["epoch"] * grain
        found["expires_at_step"] = (found["epoch"] + ttl // grain + 1) * grain
    return found


def _bloom(table: LoadedTable, key: int, partition: int) -> dict[str, int] | None:
    config = dict(table.config.get("admission") or {})
    found = None
    if config.pop("kind", None) == "BloomAdmission":
        policy = BloomAdmission.from_parameters(config)
        if table.bloom_bytes * 256 != policy.nbytes:
            raise DataError(
                f"the filter of table {table.name!r} has {256 * table.bloom_bytes} bytes; its "
                f"admission policy makes it of {policy.nbytes}"
            )
        for data in table.bloom(partition, partition):
            held = estimate(key, data, policy.cell_bits, policy.n_hashes)
            most = 2**policy.cell_bits - 1
            found = {"estimate": held, "most": most, "min_count": policy.min_count}
    return found


def _admission_text(
    config: Mapping[str, Any] | None,
    row: Mapping[str, Any] | None,
    candidate: Mapping[str, Any] | None,
    bloom: Mapping[str, int] | None,
) -> str:
    """Return why the key has a row, or none."""
    if row:
        return "admitted: it has a row"
    gone = "its row was evicted or erased"
    if config is None:
        return f"no row: it was never seen, or {gone}; any key is admitted when it is seen"
    least = int(config["min_count"])
    if candidate:
        missing = max(0, least - candidate["count"])
        return f"not admitted: seen {candidate['count']} times of {least}; {missing} more to go"
    if bloom:
        missing = max(0, least - bloom["estimate"])
        return (
            f"not admitted: the filter has seen it about {bloom['estimate']} times of {least}; "
            f"{missing} more to go"
        )
    return (
        f"no row: it was never seen, or its count expired, or {gone}; "
        f"it is admitted when it is seen {least} times"
    )


def _eviction(
    verdict: Verdict | None, row: Mapping[str, Any] | None, is_pinned: bool
) -> dict[str, Any] | None:
    if row is None:
        return None
    if verdict is None:
        return {"would_evict": False, "text": ["the table has no eviction policy"]}
    document = {"would_evict": verdict.selects and not is_pinned, **verdict.to_dict()}
    pinned = ["pinned: never evicted, whatever the policy says"] if is_pinned else []
    return {**document, "text": [*pinned, *verdict.lines()]}


def _place(loaded: LoadedCheckpoint, table: LoadedTable, key: int) -> dict[str, Any]:
    """Return the newest layer, file and block that hold a key's row."""
    partition = fixed_hash(key % UINT64) >> 56
    files = CheckpointFiles(loaded.path, loaded.generation)
    try:
        index = [entry.name for entry in files.manifest.tables].index(table.name)
        columns = files.manifest.tables[index].columns("rows")
        for layer in reversed(range(len(table.layers))):
            for file in files.manifest.files_of(index, "rows", layer):
                if file.first <= partition <= file.last:
                    for number, (offset, arrays) in enumerate(files.blocks(file, columns)):
                        if (arrays[0] == key).any():
                            place = {"file": file.name, "block": number, "offset": offset}
                            return {"generation": table.layers[layer].generation, **place}
    finally:
        files.close()
    raise InternalError(f"the row of key {key} was read, and is in no file of {loaded.path}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    pinned = ", pinned" if found["is_pinned"] else ""
    lines = [
        f"key {found['key']} ({found['hex']}) of table {found['table']!r}: "
        f"{found['status']}{pinned}, partition {found['partition']}",
        f"admission: {found['admission']}",
    ]
    if found["bloom"]:
        lines.append("bloom filter: estimate {estimate}, at most {most}".format(**found["bloom"]))
    if found["candidate"] and "expires_at_step" in found["candidate"]:
        expires = found["candidate"]["expires_at_step"]
        lines.append(f"candidate: forgotten from step {count(expires)} on if not seen before")
    return lines + (_row_lines(found) if found["row"] else [])


def _row_lines(found: Mapping[str, Any]) -> list[str]:
    row = found["row"]
    norm = row["norm"] if isinstance(row["norm"], str) else f"{row['norm']:.6g}"
    lines = [
        f"row: freq {count(row['freq'])}, step {count(row['step'])}, "
        f"age {count(row['age'])} at step {count(found['step'])}, norm {norm}; "
        f"block {row['block']} of {row['file']}",
        *(f"{name}: {_numbers(part, found['dim'])}" for name, part in _vectors(row).items()),
    ]
    would = "would be evicted" if found["eviction"]["would_evict"] else "would stay"
    lines.append(f"eviction at step {count(found['step'])}: it {would}")
    return lines + [f"  {line}" for line in found["eviction"]["text"]]


def _vectors(row: Mapping[str, Any]) -> dict[str, list[float | str]]:
    return {"values": row["values"], **row["slots"]}


def _numbers(numbers: list[float | str], dim: int) -> str:
    words = [n if isinstance(n, str) else f"{n:.6g}" for n in numbers]
    return " ".join(words) + (" ..." if len(words) == N_SHOWN < dim else "")
