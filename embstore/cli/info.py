"""``embstore info``: print what a checkpoint holds."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embstore.cli._report import table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the summary of a checkpoint."""
    from embstore.checkpoint import inspect

    print(shown(inspect(options.checkpoint), options.json))
    return 0


def shown(summary: Mapping[str, Any], as_json: bool) -> str:
    """Return a summary as JSON, or as lines of dotted names and values."""
    if as_json:
        return json.dumps(summary, indent=2, default=str)
    return table([[name, value] for name, value in _lines(summary, "")], is_text=True)


def _lines(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _lines(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and _is_nested(value):
        for number, inner in enumerate(value):
            yield from _lines(inner, f"{name}[{number}]")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, f"{value:,}"
    else:
        yield name, str(value)


def _is_nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | list | tuple) for value in values)
