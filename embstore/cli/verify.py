"""``embstore verify``: read a checkpoint whole and check every block of it."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from embstore.cli.info import shown
from embstore.errors import CheckpointError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Check a checkpoint; 0 if it is sound, else 1 and what is wrong with it."""
    from embstore.checkpoint import verify

    try:
        report = _as_dict(verify(options.checkpoint))
    except CheckpointError as error:
        if options.json:
            print(json.dumps({"is_sound": False, "error": str(error)}, indent=2))
        else:
            print(f"embstore verify: {error}", file=sys.stderr)
        return 1
    print(shown({"is_sound": True, **report}, options.json))
    return 0


def _as_dict(report: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return dataclasses.asdict(report)
    return dict(report)
