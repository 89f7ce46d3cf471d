"""Paths as callers give them."""

import os

from embstore.errors import ArgumentError, ArgumentTypeError

Path = str | os.PathLike[str]


def path_of(path: object) -> str:
    """Return the path of a directory as a string; raise if it cannot be one."""
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be a string or a path, got {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ArgumentTypeError("path must be text, got bytes")
    if not text or "\0" in text:
        raise ArgumentError(f"path must name a directory, got {text!r}")
    return text
