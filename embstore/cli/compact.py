"""``embstore compact``: write a checkpoint and the deltas on top of it as one."""

import argparse
import json

from embstore.cli._options import integer
from embstore.cli._report import count, size


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    parser.add_argument(
        "--keep-last",
        type=integer(1),
        default=1,
        metavar="K",
        help="how many generations stay loadable, the new one included (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Compact a checkpoint and print what was written."""
    from embstore.checkpoint import compact

    report = compact(options.checkpoint, keep_last=options.keep_last)
    if options.json:
        print(json.dumps(report._asdict(), indent=2))
    elif report.n_bytes == 0:
        print(f"generation {report.generation}: {report.reason}")
    else:
        print(
            f"generation {report.generation}: {count(report.n_rows)} rows and "
            f"{size(report.n_bytes)} written in {report.seconds:.2f} s"
        )
    return 0
