"""What ``embstore build-tf-op`` and ``embstore build-jax-op`` share."""

import argparse
import json
from types import ModuleType


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def build(adapter: ModuleType, options: argparse.Namespace) -> int:
    """Compile the ops of an adapter, unless they are there, and print where they lie."""
    try:
        build_op = adapter.build_op
    except ImportError as error:
        raise FileNotFoundError(str(error)) from None
    path = build_op()
    print(json.dumps({"library": path}) if options.json else path)
    return 0
