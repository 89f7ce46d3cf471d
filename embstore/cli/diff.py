"""``embstore diff``: compare two checkpoints, table by table."""

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from embstore.checkpoint import LoadedCheckpoint, load_tables
from embstore.cli._checkpoint import add_generation, add_output, policy_text
from embstore.cli._difference import PARTS, compare_tables
from embstore.cli._options import integer
from embstore.cli._report import count, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("a", help="the folder of a checkpoint")
    parser.add_argument("b", help="the folder of another")
    parser.add_argument(
        "--limit", type=integer(0), default=20, metavar="N", help="how many keys to list (20)"
    )
    add_generation(parser, "--generation-a")
    add_generation(parser, "--generation-b")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Compare; 0 if the checkpoints hold the same to the bit, else 1."""
    names = None if options.table is None else [options.table]
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(load_tables(path, names, generation=generation))
            for path, generation in (
                (options.a, options.generation_a),
                (options.b, options.generation_b),
            )
        )
        found = _compared(one, other, options.limit, is_whole=names is None)
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0 if found["is_equal"] else 1


def _compared(
    one: LoadedCheckpoint, other: LoadedCheckpoint, limit: int, is_whole: bool
) -> dict[str, Any]:
    pairs = [(name, name) for name in one.tables if name in other.tables]
    if not pairs and len(one.tables) == len(other.tables) == 1:
        pairs = [(next(iter(one.tables)), next(iter(other.tables)))]
    tables = [compare_tables(one.tables[a], other.tables[b], limit) for a, b in pairs]
    paired = [{pair[side] for pair in pairs} for side in (0, 1)]
    only_a = [name for name in one.tables if name not in paired[0]]
    only_b = [name for name in other.tables if name not in paired[1]]
    extra = _differing_extra(one.extra or {}, other.extra or {}) if is_whole else []
    is_store_equal = not is_whole or one.store == other.store
    is_equal = is_store_equal and not (only_a or only_b or extra)
    return {
        "is_equal": is_equal and all(each["is_equal"] for each in tables),
        "a": one.path,
        "b": other.path,
        "tables_only_a": only_a,
        "tables_only_b": only_b,
        "is_store_equal": is_store_equal,
        "extra": extra,
        "tables": tables,
    }


def _differing_extra(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of what was saved beside the tables that differ."""
    return sorted(
        name
        for name in {*one, *other}
        if name not in one or name not in other or not _is_same(one[name], other[name])
    )


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and bool(one == other)


def _lines(found: Mapping[str, Any]) -> list[str]:
    """Return a comparison as lines of text."""
    if found["is_equal"]:
        rows = sum(each["rows"]["n_both"] for each in found["tables"])
        return [f"equal: {len(found['tables'])} tables, {count(rows)} rows"]
    lines = []
    for side in ("a", "b"):
        for name in found[f"tables_only_{side}"]:
            lines.append(f"table {name!r} is only in {found[side]}")
    if not found["is_store_equal"]:
        lines.append("the features of the stores differ")
    if found["extra"]:
        lines.append(f"extra differs: {', '.join(found['extra'])}")
    for each in found["tables"]:
        lines += _table_lines(each)
    return lines


def _table_lines(each: Mapping[str, Any]) -> list[str]:
    name = each["a"] if each["a"] == each["b"] else f"{each['a']} and {each['b']}"
    if each["is_equal"]:
        return [f"table {name}: equal, {count(each['rows']['n_both'])} rows"]
    rows, pending = each["rows"], each["candidates"]
    parts = ", ".join(f"{part} {count(rows['n_changed_parts'][part])}" for part in PARTS)
    numbers = [
        ["rows only in A", count(rows["n_only_a"])],
        ["rows only in B", count(rows["n_only_b"])],
        ["rows in both", count(rows["n_both"])],
        [f"rows changed ({parts})", count(rows["n_changed"])],
        ["greatest |difference| of values", _number(rows["max_abs_difference"])],
        ["L2 of the differences", _number(rows["l2_difference"])],
        ["pending keys only in A", count(pending["n_only_a"])],
        ["pending keys only in B", count(pending["n_only_b"])],
        ["pending keys counted otherwise", count(pending["n_changed"])],
        ["bytes of the bloom filter that differ", count(each["n_filter_bytes"])],
        ["pins in one alone", count(each["n_pins"])],
    ]
    lines = [f"table {name}:", *(f"  {line}" for line in table(numbers).splitlines())]
    for what in ("shape", "config", "state"):
        for member, (one, other) in each[what].items():
            lines.append(f"  {what} {member}: {policy_text(one)} -> {policy_text(other)}")
    for side in ("a", "b"):
        if rows[f"only_{side}"]:
            keys = " ".join(map(str, rows[f"only_{side}"]))
            lines.append(f"  only in {side.upper()}: {keys}")
    for row in rows["changed"]:
        words = ", ".join(row["changed"])
        distance = _number(row["max_abs_difference"])
        lines.append(f"  changed {row['key']}: {words} (values by {distance})")
    return lines


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
