"""Tensors to what a table takes, and what it gives to tensors; nothing is copied on one device.

A table of the host serves tensors of a card too: ids are copied to it and rows back, which waits.
"""

from typing import Any

import numpy as np
import torch

from embstore import ArgumentTypeError, Table

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_n_of_storage = getattr(torch._C, "_storage_Use_Count", None)


def keys_of(ids: torch.Tensor, table: Table) -> Any:
    """Return flat ids as the table takes keys."""
    if ids.dtype is torch.int64 and ids.is_cpu:
        return ids.numpy()
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentTypeError(
            f"ids must be an integer tensor (int64, or int32 and uint64), got {ids.dtype} "
            f"of shape {tuple(ids.shape)}"
        )
    return _given(ids, table)


def floats_of(values: torch.Tensor, table: Table) -> Any:
    """Return gradients or weights as the table takes them: float32, contiguous."""
    if values.dtype != torch.float32:
        values = values.float()
    return _given(values.contiguous(), table)


def rows_of(array: Any, like: torch.Tensor) -> torch.Tensor:
    """Return rows that a table gave as a tensor on the device of `like`."""
    if isinstance(array, np.ndarray):
        rows = torch.from_numpy(array)
        return rows if like.is_cpu else rows.to(like.device)
    return torch.from_dlpack(array)


def read(table: Table, ids: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, dim) of flat ids in the table's dtype; the table is not changed."""
    keys = keys_of(ids, table)
    if table.dtype == "bfloat16" and isinstance(keys, np.ndarray):
        bits = table.find(keys, raw=True)
        return rows_of(bits.view(np.int16), ids).view(torch.bfloat16)
    rows = rows_of(table.find(keys, **stream_of(keys)), ids)
    return rows if table.dtype != "bfloat16" else rows.bfloat16()


def dtype_of(table: Table) -> torch.dtype:
    """Return the dtype in which a table stores values."""
    return DTYPES[table.dtype]


def on_host(array: Any) -> Any:
    """Return an array of the host or of a card as numpy."""
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, torch.Tensor):
        return array.cpu().numpy()
    return torch.from_dlpack(array).cpu().numpy()


def has_one_owner(tensor: torch.Tensor) -> bool:
    """Return whether nobody but the caller has a tensor or its memory; False where none can tell.

    A tensor counts its references, and its storage those of the tensors on it and of this call.
    """
    n_of_tensor = getattr(tensor, "_use_count", None)
    if _n_of_storage is None or n_of_tensor is None or n_of_tensor() != 1:
        return False
    return bool(_n_of_storage(tensor.untyped_storage()._cdata) == 2)


def stream_of(keys: Any) -> dict[str, Any]:
    """Return the argument that queues a call where PyTorch queues its work on these tensors."""
    if isinstance(keys, torch.Tensor) and keys.is_cuda:
        return {"stream": torch.cuda.current_stream(keys.device).cuda_stream}
    return {}


def _given(values: torch.Tensor, table: Table) -> Any:
    values = values.detach()
    if values.is_cpu:
        return values.numpy()
    if table.device == "cpu":
        return values.cpu().numpy()
    return values
