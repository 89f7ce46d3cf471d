"""Prefix sums and stable sorts on the device: what puts a batch into an order that no race decides.

Nothing here waits for the device. Addresses are of arrays in its memory.
"""

import enum

from embstore.engines.cuda.launch import Launcher

DIGITS = 256
SCAN_THREADS = 1 << 16  # 256 blocks, whose sums each thread reads
ITEMS_PER_SEGMENT = 512
MAX_SEGMENTS = 4096
WARP = 32


class SortBy(enum.Enum):
    """What a sort compares."""

    WORD = "word"  # uint32
    KEY = "key"  # uint64, as signed
    PARTITION = "partition"  # of uint64 keys
    PARTITION_AND_KEY = "partition and key"  # as saved and exported


# (DigitOf, shift) of order.h, the least significant first.
KEY_DIGITS = tuple((1, 8 * byte) for byte in range(8))
PARTITION_DIGIT = (2, 0)


def digits_of(kind: SortBy, n_bits: int) -> tuple[tuple[int, int], ...]:
    """Return the digits that a sort goes through."""
    if kind is SortBy.WORD:
        return tuple((0, shift) for shift in range(0, max(1, n_bits), 8))
    if kind is SortBy.PARTITION:
        return (PARTITION_DIGIT,)
    return KEY_DIGITS if kind is SortBy.KEY else (*KEY_DIGITS, PARTITION_DIGIT)


def scan(launcher: Launcher, counts: int, n: int, out: int, total: int = 0, n_at: int = 0) -> None:
    """Write the sum of all uint32 `counts` before each; `out` may be `counts`.

    Parameters
    ----------
    launcher
        Where to run, and the scratch memory.
    counts, out
        (n,) uint32.
    n
        How many there are, or, with `n_at`, the most that there may be.
    total
        Where the sum of all goes, uint64; 0 is nowhere.
    n_at
        Where the device keeps how many there are, uint64; 0 is nowhere.
    """
    n_threads = min(n, SCAN_THREADS)
    sums = launcher.scratch("scan sums", 8 * (SCAN_THREADS // 256))
    launcher.run("scan_sums", n_threads, counts=counts, n=n, n_at=n_at, sums=sums)
    launcher.run(
        "scan_write", n_threads, counts=counts, n=n, n_at=n_at, sums=sums, out=out, total=total
    )


def sort(
    launcher: Launcher,
    keys: int,
    kind: SortBy,
    n: int,
    out: int,
    n_bits: int = 32,
    n_at: int = 0,
) -> None:
    """Write the indices of `keys` in ascending order, those of equal keys as they come.

    Parameters
    ----------
    launcher
        Where to run, and the scratch memory.
    keys
        (n,) uint32 for SortBy.WORD, otherwise uint64.
    kind
        What is compared.
    n
        How many keys there are, fewer than 2^32; with `n_at`, the most that there may be.
    out
        (n,) uint32.
    n_bits
        Of words: higher bits are all zero.
    n_at
        Where the device keeps how many there are, uint64; 0 is nowhere.
    """
    digits = digits_of(kind, n_bits)
    n_segments = max(1, min(-(-n // ITEMS_PER_SEGMENT), MAX_SEGMENTS))
    table = launcher.scratch("sort table", 4 * DIGITS * n_segments)
    other = launcher.scratch("sort items", 4 * n) if len(digits) > 1 else 0
    source = 0
    for place, (digit_of, shift) in enumerate(digits):
        to = out if (len(digits) - place) % 2 == 1 else other
        fields = {"keys": keys, "digit_of": digit_of, "shift": shift, "from": source}
        fields |= {"n": n, "n_at": n_at, "n_segments": n_segments, "table": table}
        launcher.run("sort_histogram", WARP * n_segments, **fields)
        scan(launcher, table, DIGITS * n_segments, table)
        launcher.run("sort_scatter", WARP * n_segments, **fields, to=to)
        source = to
