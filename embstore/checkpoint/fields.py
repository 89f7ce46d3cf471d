"""Checks of the members of a manifest, which anybody may have written."""

import re
from collections.abc import Mapping
from typing import Any

from embstore.checkpoint.blocks import Section

INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1
MAX_SECTION_BYTES = 1 << 26

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}\.arrow", re.ASCII)
CRC = re.compile(r"[0-9a-f]{8}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
HEX_FLOAT = re.compile(r"0x[01](\.[0-9a-f]+)?p[+-][0-9]+", re.ASCII)
EXTRA_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)

# The state of a table: least and greatest value of each integer.
STEP_FIELDS = {
    "step": 0,
    "step_base": 0,
    "n_train_steps": 0,
    "last_train_step": -1,
    "next_evict": 0,
    "next_freq_halve": 0,
    "next_bloom_halve": 0,
    "candidate_epoch": 0,
}
POWER_FIELDS = ("beta1_power", "beta2_power")
TOTAL_FIELDS = (
    *("n_inserted", "n_evicted", "n_erased", "n_refused", "n_candidates_expired"),
    *("n_grads_dropped", "n_grads_stale", "n_nonfinite", "n_steps_clamped", "n_bloom_added"),
)


class FieldError(ValueError):
    """A member of a manifest has a type or a value that cannot be."""


def mapping(value: object, what: str) -> dict[str, Any]:
    """Return `value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise FieldError(f"{what} is {_shown(value)}; expected an object")
    return value


def array(member: Mapping[str, Any], name: str) -> list[Any]:
    """Return a member that must be a JSON array."""
    value = member.get(name)
    if not isinstance(value, list):
        raise FieldError(f"{name} is {_shown(value)}; expected an array")
    return value


def items(value: object, n: int, what: str) -> list[Any]:
    """Return `value`, which must be a JSON array of n items."""
    if not isinstance(value, list) or len(value) != n:
        raise FieldError(f"{what} is {_shown(value)}; expected an array of {n}")
    return value


def integer(member: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return a member that must be an integer in [low, high]."""
    value = member.get(name)
    if type(value) is not int or not low <= value <= high:
        raise FieldError(f"{name} is {_shown(value)}; expected an integer from {low} to {high}")
    return value


def count(member: Mapping[str, Any], name: str) -> int:
    """Return a member that must be an integer from 0 to 2^63 - 1."""
    return integer(member, name, 0, INT64_MAX)


def text(member: Mapping[str, Any], name: str) -> str:
    """Return a member that must be a string."""
    value = member.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{name} is {_shown(value)}; expected a string")
    return value


def choice(member: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    """Return a member that must be one of `choices`."""
    value = member.get(name)
    if not isinstance(value, str) or value not in choices:
        raise FieldError(f"{name} is {_shown(value)}; expected one of {', '.join(choices)}")
    return value


def file_name(member: Mapping[str, Any]) -> str:
    """Return the name of a data file: no path, no capitals, nothing hidden."""
    name = text(member, "name")
    if not FILE_NAME.fullmatch(name):
        raise FieldError(
            f"the file name {_shown(name)} is not made of a-z, 0-9 and '-', ending in .arrow"
        )
    return name


def sha256(member: Mapping[str, Any]) -> str:
    """Return the member that is the SHA-256 of a file."""
    digest = text(member, "sha256")
    if not SHA256.fullmatch(digest):
        raise FieldError(f"sha256 is {_shown(digest)}; expected 64 hexadecimal digits")
    return digest


def section(value: object) -> Section:
    """Return an item of ``sections``: [bytes, rows, CRC-32 in hexadecimal]."""
    n_bytes, n_rows, crc = items(value, 3, "a section")
    member = {"bytes": n_bytes, "rows": n_rows}
    if not isinstance(crc, str) or not CRC.fullmatch(crc):
        raise FieldError(f"the checksum {_shown(crc)} is not of 8 hexadecimal digits")
    return Section(
        integer(member, "bytes", 1, MAX_SECTION_BYTES),
        integer(member, "rows", 0, MAX_SECTION_BYTES),
        int(crc, 16),
    )


def check_unique(what: str, names: list[str]) -> None:
    """Raise if a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FieldError(f"{what} {_shown(name)} is listed twice")
        seen.add(name)


def state_member(state: Mapping[str, int | float]) -> dict[str, int | str]:
    """Return a table's state for the manifest; the powers in hexadecimal."""
    member: dict[str, int | str] = {name: int(state[name]) for name in STEP_FIELDS}
    member.update({name: float(state[name]).hex() for name in POWER_FIELDS})
    member.update({name: int(state[name]) for name in TOTAL_FIELDS})
    return member


def state(member: Mapping[str, Any]) -> dict[str, int | float]:
    """Return a table's state, all fields of it, checked."""
    found: dict[str, int | float] = {
        name: integer(member, name, low, INT64_MAX) for name, low in STEP_FIELDS.items()
    }
    found.update({name: _power(member, name) for name in POWER_FIELDS})
    found.update({name: integer(member, name, 0, UINT64_MAX) for name in TOTAL_FIELDS})
    unknown = set(member) - set(found)
    if unknown:
        raise FieldError(f"a state has the unknown members {sorted(unknown)}")
    if not found["step_base"] <= found["step"] >= found["last_train_step"]:
        raise FieldError("a state's step is less than its step_base or its last_train_step")
    return found


def _power(member: Mapping[str, Any], name: str) -> float:
    digits = text(member, name)
    if not HEX_FLOAT.fullmatch(digits) or not (value := float.fromhex(digits)) <= 1.0:
        raise FieldError(f"{name} is {_shown(digits)}; expected a hexadecimal float from 0 to 1")
    return value


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "..."
