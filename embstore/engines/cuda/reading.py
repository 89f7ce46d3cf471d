"""The verbs of a CUDA table that change nothing: find, contains, and reading bags."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import native
from embstore.engines.cuda.core import DTYPE_NUMBERS, CudaCore
from embstore.engines.engine import Keys, Part
from embstore.errors import MissingKeyError

NO_POSITION = 2**64 - 1


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
        with self._entered():
            self._find(keys, rows, missing, found, freq, step)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys have a row."""
        found = np.empty(len(keys), np.bool_)
        with self._entered():
            self._find(keys, None, "default", found, None, None)
        return found

    def _find(
        self,
        keys: Keys,
        rows: NDArray[Any] | None,
        missing: str,
        found: NDArray[np.bool_] | None,
        freq: NDArray[np.uint32] | None,
        step: NDArray[np.int64] | None,
    ) -> None:
        launcher, n = self._launcher, len(keys)
        if n == 0:
            return
        outputs = {"out": rows, "found": found, "freq": freq, "step": step}
        at = {
            name: 0 if array is None else launcher.scratch(f"find_{name}", array.nbytes)
            for name, array in outputs.items()
        }
        first_missing = 0
        if missing == "raise":
            first_missing = launcher.scratch("first_missing", 8)
            launcher.queue.fill(first_missing, 0xFF, 8)
        launcher.run(
            "find_rows",
            8 * n,
            table=self._storage.view,
            keys=self._upload("find_keys", keys),
            n=n,
            out_dtype=0 if rows is None else DTYPE_NUMBERS[rows.dtype],
            missing=native.MISSING[missing],
            rows=0,
            first_missing=first_missing,
            **at,
        )
        if first_missing:
            position = self._word(first_missing)
            if position != NO_POSITION:
                raise MissingKeyError(f"{self._where}: no row for key {keys[position]}")
        for name, array in outputs.items():
            if array is not None:
                launcher.queue.download(at[name], array)

    def _find_parts(self, parts: Sequence[Part], missing: str) -> None:
        """Fill the rows of all parts."""
        for part in parts:
            assert part.keys is not None
            if part.bags is None:
                self._find(part.keys, part.rows, missing, None, None, None)
            else:
                self._pool_keys(part, missing)

    def _pool_keys(self, part: Part, missing: str) -> None:
        raise NotImplementedError
