"""``embstore build-tf-op``: compile the TensorFlow ops before they are needed, as in an image."""

import argparse
import json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Compile the ops, unless they are there, and print where they lie."""
    try:
        from embstore.tensorflow import build_op
    except ImportError as error:
        raise FileNotFoundError(str(error)) from None
    path = build_op()
    print(json.dumps({"library": path}) if options.json else path)
    return 0
