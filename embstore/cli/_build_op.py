"""What ``embstore build-tf-op`` and ``embstore build-jax-op`` share."""

import argparse
import json
from collections.abc import Callable


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def build(build_op: Callable[[], str], options: argparse.Namespace) -> int:
    """Compile the ops, unless they are there, and print where they lie."""
    path = build_op()
    print(json.dumps({"library": path}) if options.json else path)
    return 0
