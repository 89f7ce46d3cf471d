"""State dicts of PyTorch as numpy arrays, read without running what a file might hold."""

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embstore.errors import DataError

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
OLDEST = (2, 6)  # before, weights_only=True could run code


def read_state_dict(path: "str | os.PathLike[str]") -> dict[str, npt.NDArray[Any]]:
    """Return the dense tensors of a file that ``torch.save`` wrote, by name.

    Only tensors and plain containers are read (``weights_only=True``); dicts in dicts are joined
    by dots. Nothing is copied: the arrays lie in the mapped file, but for files of before torch
    1.6, which are read whole.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict of str to numpy.ndarray
        float16, float32, float64 and integers as they are, bfloat16 as its bits in uint16.

    Raises
    ------
    DataError
        If torch is missing or too old, or the file is none of torch's, or holds other objects
        than tensors.
    """
    torch = _torch()
    place = os.fspath(path)
    try:
        is_mapped = zipfile.is_zipfile(place)
        loaded = torch.load(place, map_location="cpu", weights_only=True, mmap=is_mapped)
    except OSError:
        raise
    except Exception as error:  # it raises nearly anything about files that are not its own
        first = str(error).strip().partition("\n")[0]
        raise DataError(f"{place} cannot be read as weights of torch: {first}") from None
    if not isinstance(loaded, Mapping):
        raise DataError(f"{place} holds a {type(loaded).__name__}; expected a dict of tensors")
    return {name: _numpy(torch, tensor) for name, tensor in _tensors(torch, loaded, "")}


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise DataError(f"reading files of PyTorch needs torch: {INSTALL}") from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST:
        raise DataError(
            f"torch {torch.__version__} is too old to read files safely; 2.6 is needed: {INSTALL}"
        )
    return torch


def _tensors(torch: Any, members: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    """Return the dense tensors of nested dicts, with their joined names."""
    found = []
    for name, value in members.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found += _tensors(torch, value, f"{full}.")
        elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
            if not value.is_quantized and not value.is_complex():
                found.append((full, value))
    return found


def _numpy(torch: Any, tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: npt.NDArray[Any] = tensor.numpy()
    return array
