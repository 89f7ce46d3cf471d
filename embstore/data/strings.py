"""Strings to keys: the one stable 64-bit hash of the project.

The key of a string is BLAKE2b of its bytes (UTF-8 for text) with a digest of 8 bytes and neither
key, salt nor personalisation, read as a little-endian signed 64-bit integer. Any language can
repeat it; in Python ``int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(),
"little", signed=True)``. Two of n strings share a key with probability n^2 / 2^65: 3e-8 for a
million.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embstore.errors import ArgumentError, ArgumentTypeError

DIGEST_BYTES = 8


def is_string(arrow_type: pa.DataType) -> bool:
    """Tell whether a column of this Arrow type holds strings or bytes, which are hashed to keys."""
    return any(
        check(arrow_type)
        for check in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
            pa.types.is_fixed_size_binary,
        )
    )


def hash_strings(
    values: "pa.Array | npt.NDArray[np.str_] | Sequence[str | bytes]",
) -> npt.NDArray[np.int64]:
    """Return the keys of strings; each distinct string is hashed once.

    Parameters
    ----------
    values
        (n,) strings or bytes: an Arrow array of any string or binary type, dictionary-encoded or
        not, a numpy array, or a sequence of `str` or of `bytes`. The same bytes give the same key
        in each of these forms.

    Returns
    -------
    numpy.ndarray
        (n,) int64.

    Raises
    ------
    ArgumentTypeError
        If the values are neither strings nor bytes.
    ArgumentError
        If a value is null.

    Examples
    --------
    >>> from embstore.data import hash_strings
    >>> hash_strings(["shoes", "boots", "shoes"]).tolist()
    [2069200323341772933, 5680640501069182516, 2069200323341772933]
    """
    array = values if isinstance(values, pa.Array) else _arrow_strings(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not is_string(array.type):
        raise ArgumentTypeError(
            f"strings or bytes are hashed to keys; these values are {array.type}"
        )
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise ArgumentError(f"a string to hash is null: value {row} of {len(array)}")
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = pa.array(array.to_pylist(), pa.large_binary())  # older Arrow cannot cast views
    distinct = array.dictionary_encode()
    keys = _hash_distinct(distinct.dictionary)
    hashed: npt.NDArray[np.int64] = keys[distinct.indices.to_numpy()]
    return hashed


def _hash_distinct(strings: pa.Array) -> npt.NDArray[np.int64]:
    """Hash each string of an array without nulls."""
    texts = (
        strings if pa.types.is_fixed_size_binary(strings.type) else strings.cast(pa.large_binary())
    )
    digests = [blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64, copy=False)


def _arrow_strings(values: "npt.NDArray[np.str_] | Sequence[str | bytes]") -> pa.Array:
    if isinstance(values, str | bytes):
        raise ArgumentTypeError(
            f"hash_strings takes many strings, not one {type(values).__name__}; put it into a list"
        )
    if len(values) == 0:
        return pa.array([], pa.string())
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ArgumentTypeError(f"strings or bytes are hashed to keys: {error}") from None
    if isinstance(array, pa.ChunkedArray):  # more than 2 GiB of text
        array = array.cast(pa.large_binary()).combine_chunks()
    return array
