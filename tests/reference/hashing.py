"""The fixed hash, the name hash and Philox4x32-10 of docs/semantics.md, section 1, on arrays."""

import numpy as np

MASK32 = np.uint64(0xFFFFFFFF)
MASK64 = 2**64 - 1
INITIAL, ROUNDING = 0, 1


def as_u64(keys):
    """Return `keys` as the same bits in uint64."""
    return np.ascontiguousarray(np.atleast_1d(keys)).astype(np.int64, copy=False).view(np.uint64)


def mix(z):
    """Return the fixed hash of an array of uint64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fixed_hash(keys):
    """Return the fixed hash of each key as uint64."""
    return mix(as_u64(keys))


def fixed_hash_of_int(number):
    """Return the fixed hash of one integer from 0 to 2**64 - 1, as an int."""
    return int(mix(np.array([number], np.uint64))[0])


def partition_of(keys):
    """Return the partition, 0..255, of each key."""
    return (fixed_hash(keys) >> np.uint64(56)).astype(np.int64)


def name_hash(name):
    """Return the hash of a table's name: FNV-1a of its UTF-8 bytes, then the fixed hash."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK64
    return fixed_hash_of_int(h)


def mulhi(a, b):
    """Return the high halves of the 128-bit products of uint64 arrays."""
    a, b = np.broadcast_arrays(np.asarray(a, np.uint64), np.asarray(b, np.uint64))
    shift = np.uint64(32)
    a_low, a_high, b_low, b_high = a & MASK32, a >> shift, b & MASK32, b >> shift
    low = a_low * b_low
    middle = a_high * b_low + (low >> shift)
    other = a_low * b_high + (middle & MASK32)
    return a_high * b_high + (middle >> shift) + (other >> shift)


def shard_of(keys, n_shards):
    """Return which of `n_shards` owns each key."""
    return mulhi(fixed_hash(keys), np.uint64(n_shards)).astype(np.int64)


def philox(counter, key):
    """Return the four output words of Philox4x32-10.

    `counter` are four and `key` two arrays of uint64 below 2**32 that broadcast together.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*[np.asarray(c, np.uint64) for c in counter])
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & MASK32, high0 ^ c3 ^ k1, p0 & MASK32
        k0 = (k0 + np.uint64(0x9E3779B9)) & MASK32
        k1 = (k1 + np.uint64(0xBB67AE85)) & MASK32
    return c0, c1, c2, c3


def stream_of(seed, name):
    """Return the stream of random words of a table, an int."""
    return fixed_hash_of_int((seed ^ name_hash(name)) & MASK64)


def words(stream, keys, purpose, dim, last):
    """Return the random word of each key and column, (n, dim rounded up to a multiple of 4)."""
    k = as_u64(keys)[:, None]
    blocks = np.arange(-(-dim // 4), dtype=np.uint64)[None, :]
    counter = (k & MASK32, k >> np.uint64(32), np.uint64(purpose << 16) | blocks, np.uint64(last))
    key = (np.uint64(stream & 0xFFFFFFFF), np.uint64(stream >> 32))
    return np.stack(philox(counter, key), axis=2).reshape(len(k), 4 * blocks.size).astype(np.uint32)


def uniform(word):
    """Return the uniform float32 number in [0, 1) of each random word."""
    return (word >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
