"""Initial values of docs/semantics.md, section 2: pure functions of (stream, key, column)."""

import numpy as np

from embstore.policies import Constant, TruncatedNormal, Uniform

from .hashing import INITIAL, uniform, words

F = np.float32
LOG_COEFFICIENTS = (
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
N_ATTEMPTS = 16


def log(u):
    """Return the natural logarithm of float32 numbers in (0, 1]."""
    d = u.view(np.int32) - np.int32(0x3F3504F3)
    e = (d >> np.int32(23)).astype(np.float32)
    m = ((d & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)).view(np.float32)
    f = m - F(1)
    z = f * f
    y = np.full_like(f, F(7.0376836292e-2))
    for c in LOG_COEFFICIENTS:
        y = y * f + F(c)
    y = (y * f) * z
    y = y + e * F(-2.12194440e-4)
    y = y - F(0.5) * z
    return (f + y) + e * F(0.693359375)


def turn(word):
    """Return cos and sin of 2 pi times the uniform number of each word."""
    m = (word >> np.uint32(8)).astype(np.int64)
    q = (m + 2**21) >> 22
    r = (m - (q << 22)).astype(np.float32) * F(2.0**-24)
    x = r * F(6.2831855)
    z = x * x
    s = ((F(-1.9515295891e-4) * z + F(8.3321608736e-3)) * z - F(1.6666654611e-1)) * z * x + x
    c = (F(2.443315711809948e-5) * z - F(1.388731625493765e-3)) * z + F(4.166664568298827e-2)
    c = c * z * z
    c = c - F(0.5) * z
    c = c + F(1)
    quadrants = [q & 3 == i for i in range(4)]
    return np.select(quadrants, [c, -s, -c, s]), np.select(quadrants, [s, c, -s, -c])


def normals(word):
    """Return the standard normal number of each word; columns go in pairs (Box and Muller)."""
    first, second = word[:, 0::2], word[:, 1::2]
    u1 = ((first >> np.uint32(8)).astype(np.float32) + F(1)) * F(2.0**-24)
    r = np.sqrt(F(-2) * log(u1))
    cos, sin = turn(second)
    z = np.empty(word.shape, np.float32)
    z[:, 0::2], z[:, 1::2] = r * cos, r * sin
    return z


def truncated_normals(stream, keys, dim):
    """Return the first |z| <= 2 of sixteen attempts, column by column, or the last one clamped."""
    z = normals(words(stream, keys, INITIAL, dim, 0))
    for attempt in range(1, N_ATTEMPTS):
        redo = np.flatnonzero((np.abs(z) > 2).any(axis=1))
        if not len(redo):
            return z
        again = normals(words(stream, keys[redo], INITIAL, dim, attempt))
        z[redo] = np.where(np.abs(z[redo]) <= 2, z[redo], again)
    return np.clip(z, F(-2), F(2))


def initial_values(initializer, stream, keys, dim):
    """Return the float32 values that rows of `keys` are born with, (n, dim)."""
    keys = np.asarray(keys, np.int64)
    if isinstance(initializer, Constant):
        return np.full((len(keys), dim), F(initializer.value))
    if isinstance(initializer, Uniform):
        low, high = F(initializer.low), F(initializer.high)
        return low + (high - low) * uniform(words(stream, keys, INITIAL, dim, 0))[:, :dim]
    if isinstance(initializer, TruncatedNormal):
        z = truncated_normals(stream, keys, dim)
    else:
        z = normals(words(stream, keys, INITIAL, dim, 0))
    return F(initializer.mean) + F(initializer.std) * z[:, :dim]
