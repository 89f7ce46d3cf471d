"""What the adapters of all frameworks check alike."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from embstore import ArgumentError, ArgumentTypeError, Table


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
