"""Admission: after how many occurrences a key gets a row; docs/semantics.md, section 5.

A key is admitted at the access with count_before + occurrences_in_this_batch >= min_count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from embstore.policies._check import (
    INT64_MAX,
    Policy,
    check_float,
    check_int,
    check_optional_int,
    policy_from_config,
)

N_PARTITIONS = 256
BLOCK_BYTES = 64
MAX_HASHES = 16
MAX_BLOOM_IDS = 2**40


class Admission(Policy):
    """The base of the admission policies; `from_config` of its module reads what `to_config` wrote.

    Examples
    --------
    >>> import embstore as es
    >>> isinstance(es.CounterAdmission(2), es.Admission)
    True
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class CounterAdmission(Admission):
    """Counts exactly, in the index cell of the key, which is a candidate until it is admitted.

    Candidates that are not seen for `candidate_ttl` steps (to a grain of 1/16) are dropped. They
    count in ``nbytes`` and ``max_bytes``, not in ``len``.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, admission=es.CounterAdmission(min_count=3))
    >>> for step in range(3):
    ...     print(table.find_or_insert([7], step=step).status)
    [2]
    [2]
    [1]
    """

    min_count: int
    candidate_ttl: int | None = None

    def __post_init__(self) -> None:
        where = "CounterAdmission"
        self._set("min_count", check_int(where, "min_count", self.min_count, 1, 4095))
        ttl = check_optional_int(where, "candidate_ttl", self.candidate_ttl, 1, INT64_MAX)
        self._set("candidate_ttl", ttl)


def candidate_grain(candidate_ttl: int | None) -> int:
    """Return the steps of an epoch of candidates; 0 without epochs."""
    return 0 if candidate_ttl is None else max(1, candidate_ttl // 16)


def candidate_epochs(candidate_ttl: int) -> int:
    """Return by how many epochs a candidate may be older than the latest one."""
    return candidate_ttl // candidate_grain(candidate_ttl)


@dataclass(frozen=True, slots=True)
class BloomAdmission(Admission):
    """Counts in a cache-line blocked counting bloom filter: about 1.3, 2.6 or 5.6 bytes an id.

    The filter is made for `capacity` distinct ids that are not (yet) admitted, between two
    halvings; with that many, a new id is taken for one seen before with probability `fpr`. Its
    cells have 1 bit for `min_count` to 2, 2 bits up to 4, and 4 bits up to 16. Every `halve_every`
    steps all counts are halved, so that the filter forgets.

    Its size is solved from `bloom_fpr`; `n_hashes` is the least that this size allows.

    Examples
    --------
    >>> import embstore as es
    >>> admission = es.BloomAdmission(min_count=2, capacity=100_000_000, fpr=0.01)
    >>> admission.cell_bits, admission.n_hashes, round(admission.nbytes / 100_000_000, 2)
    (1, 6, 1.24)
    """

    min_count: int
    capacity: int
    fpr: float = 0.01
    halve_every: int | None = None

    def __post_init__(self) -> None:
        where = "BloomAdmission"
        self._set("min_count", check_int(where, "min_count", self.min_count, 1, 16))
        self._set("capacity", check_int(where, "capacity", self.capacity, 1, MAX_BLOOM_IDS))
        self._set("fpr", check_float(where, "fpr", self.fpr, low=1e-6, high=0.5))
        halve_every = check_optional_int(where, "halve_every", self.halve_every, 1, INT64_MAX)
        self._set("halve_every", halve_every)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cell bits, hashes and blocks: filters of one shape count the same key in one place."""
        return self.cell_bits, self.n_hashes, self.blocks_per_partition

    @property
    def cell_bits(self) -> int:
        """Bits of a cell: the least that can count to min_count - 1."""
        return next(bits for bits in (1, 2, 4) if self.min_count <= 1 << bits)

    @property
    def n_hashes(self) -> int:
        """Cells that one key counts in."""
        return _solve(512 // self.cell_bits, self.capacity, self.fpr)[0]

    @property
    def blocks_per_partition(self) -> int:
        """64-byte blocks in each of the 256 sub-filters."""
        return _solve(512 // self.cell_bits, self.capacity, self.fpr)[1]

    @property
    def partition_bytes(self) -> int:
        """Bytes of each of the 256 sub-filters."""
        return self.blocks_per_partition * BLOCK_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the filter."""
        return N_PARTITIONS * self.partition_bytes

    def estimated_fpr(self, n_cells_used: int) -> float:
        """Return the false positive rate of the filter when `n_cells_used` cells are not zero.

        From the fill p of the whole filter follows the load of a block, for the mean fill after n
        ids is ``p = 1 - exp(-load * k / C)``; `bloom_fpr` of that load is the answer. It exceeds
        ``p ** k``, because blocks are filled unevenly.
        """
        cells = 512 // self.cell_bits
        n_blocks = N_PARTITIONS * self.blocks_per_partition
        n_free = n_blocks * cells - n_cells_used
        if n_free <= 0:
            return 1.0
        load = math.log(n_blocks * cells / n_free) * cells / self.n_hashes
        return bloom_fpr(load * n_blocks, n_blocks, cells, self.n_hashes)


def bloom_fpr(n_ids: float, n_blocks: int, cells: int, n_hashes: int) -> float:
    """Return the chance that all cells of a new id are in use after `n_ids` others.

    Each id falls into one block of C = `cells` cells and uses k = `n_hashes` distinct ones of it.
    For a block that holds L ids, inclusion and exclusion over the k cells of the new id gives::

        sum over j of (-1)**j * comb(k, j) * r_j**L,   r_j = comb(C - j, k) / comb(C, k)

    r_j being the chance that an id leaves j given cells alone. L is binomial with `n_ids` trials
    of chance 1 / n_blocks, for which the mean of r**L is ``(1 - (1 - r) / n_blocks) ** n_ids``. So
    the unevenness of blocks and partitions is in the result; no approximation is.
    """
    log_means = _log_means(n_blocks, cells, n_hashes)
    return max(0.0, math.fsum(sign * math.exp(n_ids * mean) for sign, mean in log_means))


@lru_cache(maxsize=4096)
def _log_means(n_blocks: int, cells: int, n_hashes: int) -> tuple[tuple[int, float], ...]:
    """Return, for each j, the signed binomial and ln(1 - (1 - r_j) / n_blocks) of `bloom_fpr`."""
    terms = []
    for j in range(n_hashes + 1):
        untouched = math.comb(cells - j, n_hashes) / math.comb(cells, n_hashes)
        chance = (1.0 - untouched) / n_blocks
        log_mean = math.log1p(-chance) if chance < 1.0 else -math.inf
        terms.append(((-1) ** j * math.comb(n_hashes, j), log_mean))
    return tuple(terms)


def _least_blocks(cells: int, n_hashes: int, capacity: int, fpr: float) -> int:
    """Return the least blocks of a partition with which `n_hashes` cells an id reach `fpr`."""

    def is_enough(blocks: int) -> bool:
        return bloom_fpr(capacity, N_PARTITIONS * blocks, cells, n_hashes) <= fpr

    high = 1
    while not is_enough(high):
        high *= 2
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=256)
def _solve(cells: int, capacity: int, fpr: float) -> tuple[int, int]:
    """Return (n_hashes, blocks of a partition) of the smallest filter, with the fewest hashes."""
    sizes = {
        n_hashes: _least_blocks(cells, n_hashes, capacity, fpr)
        for n_hashes in range(1, MAX_HASHES + 1)
    }
    blocks = min(sizes.values())
    n_hashes = min(n for n, size in sizes.items() if size == blocks)
    return n_hashes, blocks


def from_config(config: Mapping[str, Any]) -> Admission:
    """Return the admission policy that `config`, made by ``to_config``, describes."""
    kinds: tuple[type[Admission], ...] = (CounterAdmission, BloomAdmission)
    return policy_from_config("Admission", config, kinds)
