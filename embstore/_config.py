"""What this installation is made of: where its headers lie, and what it found on this machine."""

import importlib.util
import platform
from pathlib import Path

import numpy as np

from embstore._version import __version__

EXTRAS = ("torch", "tensorflow", "jax", "keras", "cupy", "ml_dtypes", "tqdm", "matplotlib")


def get_include() -> str:
    """Return the folder to pass to a compiler as ``-I``, for ``#include <embstore/embstore.h>``.

    Returns
    -------
    str
        ``embstore/include`` of the installed package; in an editable install, ``include`` of the
        repository.

    Raises
    ------
    FileNotFoundError
        If the headers are at neither place, because the installation is not whole.

    Examples
    --------
    >>> import os, embstore
    >>> os.path.exists(os.path.join(embstore.get_include(), "embstore", "embstore.h"))
    True
    """
    package = Path(__file__).resolve().parent
    places = (package / "include", package.parent / "include")
    for place in places:
        if (place / "embstore" / "embstore.h").is_file():
            return str(place)
    raise FileNotFoundError(f"embstore/embstore.h is neither in {places[0]} nor in {places[1]}")


def show_config(quiet: bool = False) -> dict[str, object]:
    """Print what this installation is made of, and return it.

    Parameters
    ----------
    quiet
        Return without printing.

    Returns
    -------
    dict
        ``version``, ``python``, ``numpy``, ``cpu_path`` (the instruction set in use), ``threads``,
        ``include`` and ``extras``: for each optional package whether it can be imported. None of
        them is imported to find out.

    Examples
    --------
    >>> import embstore
    >>> embstore.show_config(quiet=True)["version"] == embstore.__version__
    True
    """
    from embstore import _core

    extras = {name: importlib.util.find_spec(name) is not None for name in EXTRAS}
    config: dict[str, object] = {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_path": _core.cpu_path(),
        "threads": _core.num_threads(),
        "include": get_include(),
        "extras": extras,
    }
    if not quiet:
        found = ", ".join(name for name in EXTRAS if extras[name]) or "none"
        for name, value in (config | {"extras": found}).items():
            print(f"{name:9} {value}")
    return config
