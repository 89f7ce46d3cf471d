"""Engines: where and how a table is stored. `create` is the one place that knows their names."""

import re
from typing import NamedTuple

from embstore.engines.engine import Engine
from embstore.engines.spec import TableSpec
from embstore.engines.types import PlanReport
from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import check_int, check_optional_int, shown

MAX_HASH_SEED = 2**128 - 1
MAX_BYTES = 2**63 - 1


class Place(NamedTuple):
    """Where a table is to live: "cpu", "cuda" or "cuda:N", and its rows in particular.

    `hbm_bytes` is the most that they take of the card's memory; None is all of them.
    """

    device: str = "cpu"
    hbm_bytes: int | None = None


CUDA = re.compile(r"cuda(:(0|[1-9][0-9]{0,5}))?")


def check_place(device: object, hbm_bytes: object, where: str) -> Place:
    """Return the place of a table, "auto" being what is there; see `Table`.

    Raises
    ------
    ArgumentError
        If there is no such place, or `hbm_bytes` is given for a table on the CPU.
    """
    if not isinstance(device, str):
        raise ArgumentTypeError(
            f'{where}: device must be a string such as "cpu" or "cuda", got {shown(device)}'
        )
    if device not in ("cpu", "auto") and not CUDA.fullmatch(device):
        raise ArgumentError(
            f'{where}: device must be "cpu", "cuda", "cuda:N" or "auto", got {device!r}'
        )
    n_bytes = check_optional_int(where, "hbm_bytes", hbm_bytes, 0, MAX_BYTES)
    found = _present_device() if device == "auto" else device
    if found == "cpu" and n_bytes is not None:
        as_found = ', which is "cpu" here' if device == "auto" else ""
        raise ArgumentError(
            f"{where}: hbm_bytes={n_bytes} is for tables on a card, got device={device!r}{as_found}"
        )
    return Place(found, n_bytes)


def _present_device() -> str:
    """Return "cuda" where a table can live on a card, else "cpu"."""
    from embstore.engines.cuda import status

    is_there = status.PROVIDER is not None or status.cuda_status().is_available
    return "cuda" if is_there else "cpu"


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


def create(spec: TableSpec, place: Place, hash_seed: int | None, collect_evicted: bool) -> Engine:
    """Return a new engine that stores a table of `spec`; `hash_seed` None is random.

    Raises
    ------
    DeviceError
        If the device cannot be used; it says what is missing.
    ArgumentError
        If the device cannot store such a table.
    """
    _check_cache(spec, place.device, "Table")
    from embstore.engines import native

    seed = native.new_hash_seed() if hash_seed is None else hash_seed
    if place.device == "cpu":
        from embstore.engines.cpu import CpuEngine

        return CpuEngine(spec, seed, collect_evicted)
    from embstore.engines.cuda.engine import CudaEngine
    from embstore.engines.cuda.status import open_device

    return CudaEngine(spec, open_device(place.device), seed, collect_evicted, place.hbm_bytes)


def plan(spec: TableSpec, place: Place, n_rows: int, n_candidates: int) -> PlanReport:
    """Return the bytes that a table of `spec` will hold with so many rows and candidates.

    No device is needed.
    """
    _check_cache(spec, place.device, "Table.plan")
    if place.device == "cpu":
        from embstore.engines import cpu

        return cpu.plan(spec, n_rows, n_candidates)
    from embstore.engines.cuda import storage

    return storage.plan(spec, n_rows, n_candidates, place.hbm_bytes)
