"""The verbs of a CUDA table that change nothing: find, contains, and reading bags."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import native
from embstore.engines.cuda import pooling
from embstore.engines.cuda.core import DTYPE_NUMBERS, CudaCore
from embstore.engines.cuda.crossing import array_at, floats_at, keys_at
from embstore.engines.cuda.device import Memory, Queue
from embstore.engines.cuda.fused import give
from embstore.engines.cuda.launch import Launcher
from embstore.engines.device_arrays import DeviceArray
from embstore.engines.engine import Keys, Part
from embstore.errors import InternalError, MissingKeyError

NO_POSITION = 2**64 - 1
POOL_MODES = {"sum": 0, "mean": 1, "sqrtn": 2}


class CudaReading(CudaCore):
    """find and its kin."""

    def find_fast(self, keys: object, out: object) -> NDArray[Any] | None:
        """Return None: the general path serves all."""
        return None

    def find(
        self,
        keys: Keys,
        rows: NDArray[Any],
        missing: str,
        found: NDArray[np.bool_] | None,
        freq: NDArray[np.uint32] | None,
        step: NDArray[np.int64] | None,
    ) -> None:
        """Fill `rows` (n, dim), and those of `found`, `freq`, `step` (n,) that are given."""
        self._find(keys, missing, {"out": rows, "found": found, "freq": freq, "step": step})

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys have a row."""
        found: NDArray[np.bool_] = np.empty(len(keys), np.bool_)
        if isinstance(keys, DeviceArray):
            found = self.new_output((len(keys),), np.dtype(np.bool_))
        self._find(keys, "default", {"out": None, "found": found, "freq": None, "step": None})
        return found

    def _find(self, keys: Keys, missing: str, outputs: dict[str, NDArray[Any] | None]) -> None:
        """Find rows; what goes to the host is waited for when the table is free for others."""
        n = len(keys)
        with self._reading() as launcher:
            if n == 0:
                return
            given = {name: array for name, array in outputs.items() if array is not None}
            late = {
                name: launcher.alloc(array.nbytes)
                for name, array in given.items()
                if not isinstance(array, DeviceArray)
            }
            at = {name: address_of(array, late.get(name)) for name, array in given.items()}
            first_missing = None
            if missing == "raise":
                first_missing = launcher.alloc(8)
                launcher.queue.fill(first_missing.address, 0xFF, 8)
            keys_address = keys_at(launcher, "find_keys", keys)
            rows = outputs["out"]
            if first_missing is None and self._is_plain(missing, given, at):
                launcher.run(
                    "find_plain_rows",
                    8 * n,
                    table=self._storage.view,
                    keys=keys_address,
                    n=n,
                    out=at["out"],
                )
            else:
                launcher.run(
                    "find_rows",
                    8 * n,
                    table=self._storage.view,
                    keys=keys_address,
                    n=n,
                    out_dtype=0 if rows is None else DTYPE_NUMBERS[rows.dtype],
                    missing=native.MISSING[missing],
                    rows=0,
                    first_missing=0 if first_missing is None else first_missing.address,
                    **dict.fromkeys(outputs, 0) | at,
                )
            queue = launcher.queue  # or what records for it
        if first_missing is not None:
            self._check_all_found(queue, first_missing, keys)
        for name, memory in late.items():
            if given[name].nbytes:
                give(queue, memory.address, given[name], memory)

    def _is_plain(self, missing: str, given: dict[str, NDArray[Any]], at: dict[str, int]) -> bool:
        """Return whether rows alone are wanted, which can be copied 16 bytes at a time."""
        spec = self._spec
        is_wide = spec.dtype == "float32" and spec.dim % 4 == 0
        return missing == "default" and given.keys() == {"out"} and is_wide and at["out"] % 16 == 0

    def _check_all_found(self, queue: Queue, first_missing: Memory, keys: Keys) -> None:
        position = np.empty(1, np.uint64)
        queue.download(first_missing.address, position)
        if int(position[0]) == NO_POSITION:
            return
        at = int(position[0])
        key = np.empty(1, keys.dtype)
        if isinstance(keys, DeviceArray):
            queue.download(keys.address + at * keys.dtype.itemsize, key)
        else:
            key[0] = keys[at]
        raise MissingKeyError(f"{self._where}: no row for key {int(key.astype(np.int64)[0])}")

    def _find_parts(self, parts: Sequence[Part], missing: str) -> None:
        """Fill the rows of all parts."""
        for part in parts:
            assert part.keys is not None
            if part.bags is None:
                self.find(part.keys, part.rows, missing, None, None, None)
            else:
                self._pool_keys(part, missing)

    def _pool_keys(self, part: Part, missing: str) -> None:
        """Fill the pooled rows of a part that only reads."""
        assert part.keys is not None
        if missing != "default":
            raise InternalError(f"bags read default rows for missing keys, not {missing!r}")
        n = len(part.keys)
        with self._reading() as launcher:
            self._check_bags([part], launcher.queue.is_capturing())
            rows = launcher.scratch("pooled_ids", 4 * n)
            launcher.run(
                "find_rows",
                8 * n,
                table=self._storage.view,
                keys=keys_at(launcher, "find_keys", part.keys),
                n=n,
                out=0,
                out_dtype=0,
                missing=0,
                found=0,
                freq=0,
                step=0,
                rows=rows,
                first_missing=0,
            )
            is_here = isinstance(part.rows, DeviceArray)
            late = None if is_here else launcher.alloc(part.rows.nbytes)
            self._pool(launcher, part, rows, 0, address_of(part.rows, late))
            queue = launcher.queue
        if late is not None:
            give(queue, late.address, part.rows, late)

    def _pool(self, launcher: Launcher, part: Part, rows: int, inverse: int, out: int) -> None:
        """Pool rows of the table into those of a part, which are written to `out`."""
        bags = part.bags
        assert bags is not None
        if bags.n_bags == 0:
            return
        weights = 0
        if bags.weights is not None:
            weights = floats_at(launcher, "pool_weights", bags.weights)
        offsets = array_at(launcher, "pool_offsets", bags.offsets)
        pooling.pool(
            launcher,
            self._storage.view,
            rows,
            offsets,
            bags.n_bags,
            POOL_MODES[bags.mode],
            out,
            self._spec.dim,
            inverse=inverse,
            weights=weights,
        )


def address_of(array: NDArray[Any], late: Memory | None) -> int:
    """Return where an output is written: in place, or where it waits to be downloaded."""
    if isinstance(array, DeviceArray):
        return array.address
    assert late is not None
    return late.address
