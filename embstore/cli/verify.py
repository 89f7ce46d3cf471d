"""``embstore verify``: read a checkpoint whole and check every block of it."""

import argparse
import json
import sys
from pathlib import Path

from embstore.cli._report import count, size
from embstore.errors import CheckpointError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--hmac-key-file",
        metavar="FILE",
        help="the checkpoint must be signed with the key that is all bytes of this file",
    )


def run(options: argparse.Namespace) -> int:
    """Check a checkpoint; 0 if it is sound, else 1 and what is wrong with it."""
    from embstore.checkpoint import verify

    key = None
    if options.hmac_key_file is not None:
        key = Path(options.hmac_key_file).read_bytes()
    try:
        report = verify(options.checkpoint, hmac_key=key)
    except CheckpointError as error:
        if options.json:
            print(json.dumps({"is_sound": False, "error": str(error)}, indent=2))
        else:
            print(f"embstore verify: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"is_sound": True, **report._asdict()}, indent=2))
        return 0
    print(
        f"sound: {count(report.n_rows)} rows and {count(report.n_candidates)} pending keys; "
        f"{size(report.n_bytes)} in {report.n_blocks} blocks of {report.n_files} files read and "
        f"checked in {report.seconds:.2f} s"
    )
    return 0
