"""What the adapters of all frameworks check alike."""

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

from embstore import ArgumentError, ArgumentTypeError, EmbstoreError, Table, errors

Mode = Literal["sum", "mean", "sqrtn"]
MODES = ("sum", "mean", "sqrtn")  # by their numbers in the C ABI

ERROR_OF_STATUS: dict[int, type[EmbstoreError]] = {  # of the C ABI, as native ops give it
    1: errors.ArgumentError,
    2: errors.OutOfMemoryError,
    3: errors.CapacityError,
    4: errors.NonFiniteError,
    6: errors.TicketError,
    7: errors.ForkError,
    8: errors.InternalError,
    10: errors.ArgumentError,
}


def check_padding(padding_id: Any, where: str, kinds: tuple[Any, ...] = (int,)) -> int | None:
    """Return an id that fills up, an int of some kind that int64 holds, or None."""
    if padding_id is None:
        return None
    if isinstance(padding_id, bool) or not isinstance(padding_id, kinds):
        raise ArgumentTypeError(
            f"{where}: padding_id must be an int, got {type(padding_id).__name__}"
        )
    if not -(2**63) <= padding_id < 2**63:
        raise ArgumentError(
            f"{where}: padding_id must be from -2**63 to 2**63 - 1, got {padding_id}"
        )
    return int(padding_id)


def table_of(table: Table | None, parameters: dict[str, Any], where: str, size: str) -> Table:
    """Return the table that was given, or a new one of `parameters`.

    `size` is how the framework calls the number of rows, which tables do not have.
    """
    if table is None:
        if "dim" not in parameters:
            raise ArgumentTypeError(
                f"{where}: give a table, or dim=... and other arguments of Table"
            )
        return Table(**parameters)
    if parameters:
        raise ArgumentTypeError(
            f"{where}: {sorted(parameters)} are parameters of a table, and one was given"
        )
    if not isinstance(table, Table):
        raise ArgumentTypeError(
            f"{where}: expected an embstore.Table, got {type(table).__name__}; rows are made by "
            f"ids, so that there is no {size}: {where}(dim=16, optimizer=...)"
        )
    return table


def check_mode(mode: Any, where: str) -> Mode:
    """Return a mode of pooling that tables have."""
    if mode not in MODES:
        error = ArgumentError if isinstance(mode, str) else ArgumentTypeError
        raise error(f"{where}: mode must be one of {list(MODES)}, got {mode!r}")
    return cast(Mode, mode)


def check_step(step: Any) -> int:
    """Return a step that a clock can be set to."""
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise ArgumentError(f"the step must be an int from 0 to 2**63 - 1, got {step!r}")
    return step


def rate_at(table: Table, step: int) -> float:
    """Return the learning rate of a table at a step; NaN where it has none."""
    lr = table.lr
    if lr is None:
        return math.nan
    return float(lr(step) if callable(lr) else lr)


def step_behind(table: Table) -> int:
    """Return the step with which training of a table goes on."""
    return table.step + 1 if table.stats()["n_train_steps"] else table.step


def lazy_names(
    package: str, homes: dict[str, str], framework: str, needs: str
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names need a framework.

    `homes` says in which module each name stands; `needs` how the framework is installed.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if find_spec(framework) is None:
            raise ImportError(f"{package}.{name} needs {needs}")
        module = import_module(package)
        setattr(module, name, getattr(import_module(homes[name]), name))
        return getattr(module, name)

    return get, lambda: sorted({*vars(import_module(package)), *homes})
