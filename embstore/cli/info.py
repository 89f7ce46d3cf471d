"""``embstore info``: print what a checkpoint holds."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from embstore.cli._checkpoint import policy_text
from embstore.cli._report import count, size, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print all of the manifest, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the summary of a checkpoint; no data are read."""
    from embstore.checkpoint import inspect

    summary = inspect(options.checkpoint)
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
        f"format {summary['format_version']}, step {count(summary['step'])}, "
        f"{size(summary['bytes'])} in {len(files)} files"
    )
    policies = [[each["name"], _policies(each["config"])] for each in summary["tables"]]
    parts = [head, table(lines), table(policies, is_text=True)]
    if summary["extra"]:
        parts.append("extra: " + ", ".join(summary["extra"]))
    return "\n\n".join(parts)


def _policies(config: Mapping[str, Any]) -> str:
    names = ("optimizer", "initializer", "admission", "eviction")
    return "; ".join(policy_text(config[name]) for name in names if config.get(name))
