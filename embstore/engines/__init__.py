"""Engines: where and how a table is stored. `create` is the one place that knows their names."""

import re

from embstore.engines.engine import Engine
from embstore.engines.spec import TableSpec
from embstore.engines.types import PlanReport
from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import check_int, shown

MAX_HASH_SEED = 2**128 - 1


CUDA = re.compile(r"cuda(:(0|[1-9][0-9]{0,5}))?")


def check_device(device: object, where: str) -> str:
    """Return `device`, which must be "cpu", "cuda", or "cuda:" and a number."""
    if not isinstance(device, str):
        raise ArgumentTypeError(
            f'{where}: device must be a string such as "cpu" or "cuda", got {shown(device)}'
        )
    if device != "cpu" and not CUDA.fullmatch(device):
        raise ArgumentError(f'{where}: device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    return device


def check_hash_seed(hash_seed: object, where: str) -> int | None:
    """Return `hash_seed`, None or 128 bits; no message shows it."""
    if hash_seed is None:
        return None
    try:
        return check_int(where, "hash_seed", hash_seed, 0, MAX_HASH_SEED)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{where}: hash_seed must be None or an integer") from None
    except ArgumentError:
        raise ArgumentError(f"{where}: hash_seed must lie from 0 to 2**128 - 1") from None


def _check_cache(spec: TableSpec, device: str, where: str) -> None:
    """Raise if a cache is asked for where there is none."""
    if device == "cpu" and spec.is_cache:
        raise ArgumentError(
            f'{where}: device="cpu" has no CacheEviction: use CapacityEviction, which is exact'
        )


def create(spec: TableSpec, device: str, hash_seed: int | None, collect_evicted: bool) -> Engine:
    """Return a new engine that stores a table of `spec`; `hash_seed` None is random.

    Raises
    ------
    DeviceError
        If the device cannot be used; it says what is missing.
    ArgumentError
        If the device cannot store such a table.
    """
    check_device(device, "Table")
    _check_cache(spec, device, "Table")
    from embstore.engines import native

    seed = native.new_hash_seed() if hash_seed is None else hash_seed
    if device == "cpu":
        from embstore.engines.cpu import CpuEngine

        return CpuEngine(spec, seed, collect_evicted)
    from embstore.engines.cuda.engine import CudaEngine
    from embstore.engines.cuda.status import open_device

    return CudaEngine(spec, open_device(device), seed, collect_evicted)


def plan(spec: TableSpec, device: str, n_rows: int, n_candidates: int) -> PlanReport:
    """Return the bytes that a table of `spec` will hold with so many rows and candidates.

    No device is needed.
    """
    check_device(device, "Table.plan")
    _check_cache(spec, device, "Table.plan")
    if device == "cpu":
        from embstore.engines import cpu

        return cpu.plan(spec, n_rows, n_candidates)
    from embstore.engines.cuda import storage

    return storage.plan(spec, n_rows, n_candidates)
