"""``embstore info``: print what a checkpoint holds."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from embstore.cli._checkpoint import policy_text
from embstore.cli._histogram import short_bytes
from embstore.cli._parts import parts_of
from embstore.cli._report import count, size, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print all of the manifest, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the summary of a checkpoint; no data are read."""
    from embstore.checkpoint import inspect

    summary = inspect(options.checkpoint)
    for index, each in enumerate(summary["tables"]):
        each["parts"] = parts_of(summary, index)
    print(json.dumps(summary, indent=2) if options.json else shown(summary))
    return 0


def shown(summary: Mapping[str, Any]) -> str:
    """Return the summary of a checkpoint as text."""
    lines = [["table", "dim", "dtype", "rows", "pending", "bytes"]]
    for each in summary["tables"]:
        sizes = (count(each["rows"]), count(each["candidates"]), size(each["bytes"]))
        lines.append([each["name"], str(each["dim"]), each["dtype"], *sizes])
    files = summary["files"]
    head = (
        f"format {summary['format_version']}, generation {summary['generation']}"
        f"{_history(summary)}, step {count(summary['step'])}, "
        f"{size(summary['bytes'])} in {len(files)} files"
    )
    policies = [[each["name"], _policies(each["config"])] for each in summary["tables"]]
    parts = [head, table(lines), table(_part_lines(summary)), table(policies, is_text=True)]
    if summary["extra"]:
        parts.append("extra: " + ", ".join(summary["extra"]))
    return "\n\n".join(parts)


def _history(summary: Mapping[str, Any]) -> str:
    """Return in brackets what else there is: deltas, and older generations that were kept."""
    words = [f"{summary['deltas']} deltas"] if summary["deltas"] else []
    older = [str(each) for each in summary["generations"] if each != summary["generation"]]
    words += [f"also kept: {', '.join(older)}"] if older else []
    return f" ({'; '.join(words)})" if words else ""


def _part_lines(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the bytes of each table by what they hold."""
    names = dict.fromkeys(name for each in summary["tables"] for name in each["parts"])
    lines = [["bytes of", *names]]
    for each in summary["tables"]:
        sizes = (each["parts"].get(name) for name in names)
        lines.append([each["name"], *("" if n is None else short_bytes(n) for n in sizes)])
    return lines


def _policies(config: Mapping[str, Any]) -> str:
    names = ("optimizer", "initializer", "admission", "eviction")
    return "; ".join(policy_text(config[name]) for name in names if config.get(name))
