"""The native ops: compiled against the TensorFlow that is installed, on first use, and kept."""

import warnings
from functools import cache
from typing import Any

import tensorflow as tf

from embstore import EmbstoreWarning, InternalError
from embstore._build import Recipe, build, why_not

SWITCH = "EMBSTORE_TF_OP"  # "off" does without the ops, as where there is no compiler


def build_op() -> str:
    """Compile the native ops for the TensorFlow that is installed, unless that has been done.

    They are kept in ``$EMBSTORE_CACHE/tensorflow-op``, by default
    ``~/.cache/embstore/tensorflow-op``.

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
    flags = [f.replace("-I", "-isystem", 1) if f.startswith("-I") else f for f in _flags()]
    links = tuple(tf.sysconfig.get_link_flags())
    return build(Recipe("TensorFlow ops", "tensorflow", tf.__version__, tuple(flags), links))


@cache
def load_op() -> Any:
    """Load the native ops into this process, compiling them if need be.

    A process that loads a SavedModel calls this first, and `register` for each table.

    Returns
    -------
    module
        The ops, as ``tf.load_op_library`` gives them.

    Raises
    ------
    ArgumentError, InternalError
        As for `build_op`; and if TensorFlow does not load what was built.
    """
    path = build_op()
    try:
        ops = tf.load_op_library(path)
    except (tf.errors.OpError, OSError) as error:
        raise InternalError(f"TensorFlow {tf.__version__} does not load {path}: {error}") from error
    from embstore.tensorflow.native import register_gradients

    register_gradients()
    return ops


@cache
def has_op() -> bool:
    """Return whether the native ops can be used; if not, say so once."""
    why = why_not(SWITCH, load_op)
    if why is None:
        return True
    warnings.warn(
        f"embstore.tensorflow goes without its native ops, by tf.numpy_function: slower, and no "
        f"model can be exported ({why})",
        EmbstoreWarning,
        stacklevel=2,
    )
    return False


def _flags() -> list[str]:
    flags: list[str] = tf.sysconfig.get_compile_flags()
    return flags
