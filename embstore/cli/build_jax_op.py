"""``embstore build-jax-op``: compile the JAX ops before they are needed, as in an image."""

import argparse

from embstore import jax
from embstore.cli._build_op import add_options, build

__all__ = ["add_options", "run"]


def run(options: argparse.Namespace) -> int:
    """Compile the ops, unless they are there, and print where they lie."""
    return build(jax, options)
