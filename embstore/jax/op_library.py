"""The native ops: XLA's foreign functions, compiled against the JAX that is installed, and kept."""

import ctypes
import warnings
from functools import cache
from typing import Any

import jax
import jax.ffi

from embstore import ArgumentError, EmbstoreWarning, InternalError
from embstore._build import Recipe, build, why_not

SWITCH = "EMBSTORE_JAX_OP"  # "off" does without them, as where there is no compiler
FUNCTIONS = ("find", "lookup", "pooled", "pooled_lookup", "update")


def build_op() -> str:
    """Compile the native ops for the JAX that is installed, unless that has been done.

    They are kept in ``$EMBSTORE_CACHE/jax-op``, by default ``~/.cache/embstore/jax-op``.

    Returns
    -------
    str
        The path of the library.

    Raises
    ------
    ArgumentError
        If there is no C++ compiler: $CXX, g++, clang++ or c++.
    InternalError
        If the ops do not compile; with what the compiler says.
    """
    headers = ("-std=c++17", "-isystem", jax.ffi.include_dir())
    return build(Recipe("JAX ops", "jax", jax.lib.__version__, headers))  # the headers are its


@cache
def load_op() -> Any:
    """Load the native ops into this process, compiling them if need be, and tell XLA."""
    path = build_op()
    try:
        library = ctypes.cdll.LoadLibrary(path)
    except OSError as error:
        raise InternalError(f"this process does not load {path}: {error}") from error
    for name in FUNCTIONS:
        symbol = f"embstore_{name}"
        jax.ffi.register_ffi_target(
            symbol, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    library.embstore_forget.argtypes = [ctypes.c_char_p]
    library.embstore_forget.restype = None
    return library


def _load_where_jax_computes() -> None:
    if jax.default_backend() != "cpu":
        raise ArgumentError(f"JAX computes on {jax.default_backend()}, and they are of the CPU")
    load_op()


@cache
def has_op() -> bool:
    """Return whether the native ops can be used; if not, say so once."""
    why = why_not(SWITCH, _load_where_jax_computes)
    if why is None:
        return True
    warnings.warn(
        f"embstore.jax goes without its native ops, by jax.experimental.io_callback: slower "
        f"({why})",
        EmbstoreWarning,
        stacklevel=2,
    )
    return False
