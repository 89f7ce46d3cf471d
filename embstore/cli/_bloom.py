"""What a bloom filter holds of one key, from the bytes of its sub-filter; docs/semantics.md, 5."""

import numpy as np
from numpy.typing import NDArray

MASK = 2**64 - 1
BLOCK_BYTES = 64
BLOCK_BITS = 8 * BLOCK_BYTES


def fixed_hash(key: int) -> int:
    """Return the fixed hash of a key, as its 64 bits."""
    z = (key + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def estimate(key: int, data: NDArray[np.uint8], cell_bits: int, n_hashes: int) -> int:
    """Return how often the sub-filter `data` of the key's partition may have counted it.

    Never less than it was counted since the last halving, up to what a cell holds.
    """
    z = fixed_hash(key & MASK)
    n_blocks = len(data) // BLOCK_BYTES
    block = (((z << 8) & MASK) * n_blocks) >> 64
    begin = block * BLOCK_BYTES
    bits = int.from_bytes(data[begin : begin + BLOCK_BYTES].tobytes(), "little")
    most = (1 << cell_bits) - 1
    return min(bits >> (cell * cell_bits) & most for cell in _cells(z, cell_bits, n_hashes))


def _cells(z: int, cell_bits: int, n_hashes: int) -> set[int]:
    """Return the cells of a block in which a key of fixed hash `z` counts."""
    width = (BLOCK_BITS // cell_bits).bit_length() - 1
    cells = set()
    word, n_left, n_refills = fixed_hash(z), 64, 0
    for _ in range(n_hashes):
        if n_left < width:
            n_refills += 1
            word, n_left = fixed_hash((z + n_refills) & MASK), 64
        cells.add(word & ((1 << width) - 1))
        word, n_left = word >> width, n_left - width
    return cells
