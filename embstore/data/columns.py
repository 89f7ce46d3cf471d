"""Arrow columns to numpy: which types are taken, what they become, and what is refused."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embstore.data.batches import Array, Column, Ragged
from embstore.data.errors import DataTypeError
from embstore.data.strings import hash_strings, is_string
from embstore.errors import DataError

INT64, FLOAT32, FLOAT64, STRING = "int64", "float32", "float64", "string"

HINTS = {
    "time": "cast it to int64 in a unit of your choice, for example seconds",
    "decimal": "cast it to an integer or a float",
    "list": "a list may hold integers or strings",
    "other": "integers, booleans, floats, strings and lists of integers or strings can be read",
}


@dataclass(frozen=True)
class ColumnType:
    """What a column becomes in numpy.

    Parameters
    ----------
    element
        ``int64`` (integers; the bits of uint64; booleans as 0 and 1), ``float32`` (float16 too),
        ``float64``, or ``string`` (hashed to int64).
    is_list
        Whether each row holds a list of elements.
    """

    element: str
    is_list: bool = False

    def __str__(self) -> str:
        return f"list of {self.element}" if self.is_list else self.element

    def joined(self, other: "ColumnType") -> "ColumnType | None":
        """Return the type that holds both, None if there is none: float32 widens to float64."""
        if self == other:
            return self
        if {self, other} == {ColumnType(FLOAT32), ColumnType(FLOAT64)}:
            return ColumnType(FLOAT64)
        return None


def column_type(arrow_type: pa.DataType, column: str, path: str) -> ColumnType:
    """Return what a column of a file becomes.

    Raises
    ------
    DataTypeError
        If a column of this type cannot be read; the message says what to do.
    """
    value_type = _list_values(arrow_type)
    element = _element(arrow_type if value_type is None else value_type)
    if value_type is None and element is not None:
        return ColumnType(element)
    if value_type is not None and element in (INT64, STRING):
        return ColumnType(element, is_list=True)
    raise DataTypeError(
        f"the column {column!r} of {path} is {arrow_type}: {HINTS[_hint(arrow_type)]}"
    )


def to_numpy(array: pa.Array, kind: ColumnType) -> Column:
    """Convert an Arrow array; int64, float and the values of lists of int64 are not copied.

    Raises
    ------
    NullError
        If a row, or a value of a list, is null.
    """
    if array.null_count:
        raise NullError(_first_null(array), in_list=False)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not kind.is_list:
        return _elements(array, kind.element)
    values = array.flatten()
    if values.null_count:
        raise NullError(_row_of_value(array, _first_null(values)), in_list=True)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    keys = _elements(values, kind.element)
    if pa.types.is_fixed_size_list(array.type):
        offsets = np.arange(len(array) + 1, dtype=np.int64) * array.type.list_size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        offsets -= offsets[0]
    return Ragged(keys.view(np.int64), offsets)


class NullError(DataError):
    """A column holds a null; `row` counts from the start of the converted array."""

    def __init__(self, row: int, in_list: bool) -> None:
        super().__init__(f"null at row {row}")
        self.row = row
        self.what = "a null in the list" if in_list else "a null"


def _elements(array: pa.Array, element: str) -> Array:
    if element == STRING:
        return hash_strings(array)
    if element == INT64 and pa.types.is_uint64(array.type):
        return array.to_numpy().view(np.int64)  # type: ignore[no-any-return]
    numbers = array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
    return numbers.astype(element, copy=False)  # type: ignore[no-any-return]


def _list_values(arrow_type: pa.DataType) -> "pa.DataType | None":
    is_list = (
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
    )
    return arrow_type.value_type if is_list else None


def _element(arrow_type: pa.DataType) -> str | None:
    if pa.types.is_dictionary(arrow_type):
        return _element(arrow_type.value_type)
    if pa.types.is_integer(arrow_type) or pa.types.is_boolean(arrow_type):
        return INT64
    if pa.types.is_float16(arrow_type) or pa.types.is_float32(arrow_type):
        return FLOAT32
    if pa.types.is_float64(arrow_type):
        return FLOAT64
    return STRING if is_string(arrow_type) else None


def _hint(arrow_type: pa.DataType) -> str:
    if pa.types.is_temporal(arrow_type):
        return "time"
    if pa.types.is_decimal(arrow_type):
        return "decimal"
    return "list" if pa.types.is_nested(arrow_type) else "other"


def _first_null(array: pa.Array) -> int:
    row: int = pc.index(array.is_null(), True).as_py()
    return row


def _row_of_value(array: pa.Array, value: int) -> int:
    if pa.types.is_fixed_size_list(array.type):
        return value // int(array.type.list_size)
    offsets = array.offsets.to_numpy()
    return int(np.searchsorted(offsets - offsets[0], value, side="right")) - 1
