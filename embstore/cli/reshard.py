"""``embstore reshard``: cut the tables of checkpoints into another number of shards."""

import argparse
import json

from embstore.cli._options import integer
from embstore.cli._progress import Bar
from embstore.cli._report import count, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("sources", nargs="+", metavar="SRC", help="a checkpoint, or all its shards")
    parser.add_argument(
        "--to", type=integer(1), required=True, metavar="N", help="the number of shards to write"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="DIR/shard-00000-of-0000N and so on are written; DIR itself if N is 1",
    )
    parser.add_argument("--force", action="store_true", help="replace checkpoints that are there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Write the shards and print what each holds."""
    from embstore.checkpoint import inspect, reshard

    n_rows = sum(table["rows"] for path in options.sources for table in inspect(path)["tables"])
    with Bar("reshard", 2 * n_rows, "rows") as bar:
        report = reshard(
            options.sources, (options.out, options.to), force=options.force, on_rows=bar.update
        )
    if options.json:
        print(json.dumps(report._asdict(), indent=2))
        return 0
    outputs = zip(report.outputs, report.rows_by_output, strict=True)
    print(table([["checkpoint", "rows"], *([path, count(n)] for path, n in outputs)]))
    print(
        f"\n{count(report.n_rows)} rows and {count(report.n_candidates)} pending keys of "
        f"{len(report.sources)} checked and written in {report.seconds:.2f} s"
    )
    return 0
