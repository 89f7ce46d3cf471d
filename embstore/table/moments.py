"""What becomes of optimizer state under another optimizer: slots, and the training clocks.

Adam divides a moment by 1 - power, the total weight of the gradients in it. A training step
multiplies 1 - weight by beta, whatever beta was before: so a moment that is kept keeps its
power even where betas change. A moment that begins anew has power 1, and the next training
counts as a step. State of another kind is no average that began at zero: its power is 0, and
nothing is corrected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embstore.engines.spec import TableSpec
from embstore.errors import ArgumentTypeError, CheckpointMismatchError
from embstore.policies._check import shown
from embstore.policies.optimizer import Adam, AdamW, Optimizer, Slots

POWERS = {"exp_avg": "beta1_power", "exp_avg_sq": "beta2_power"}
TRAINING_AT_BIRTH: dict[str, int | float] = {
    "n_train_steps": 0,
    "last_train_step": -1,
    "beta1_power": 1.0,
    "beta2_power": 1.0,
}


@dataclass(frozen=True, slots=True)
class SlotSource:
    """Where a slot comes from: a saved slot and its first column, or the value it is born with."""

    name: str
    width: int
    saved: str | None = None
    column: int = 0
    birth: float = 0.0


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Where all slots of a row come from; `is_identity` where nothing changes."""

    sources: tuple[SlotSource, ...]
    is_identity: bool
    is_reset: bool

    def apply(self, slots: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the slots of rows, (n, slot_floats) float32."""
        if self.is_identity:
            return slots
        made = np.empty((len(slots), sum(s.width for s in self.sources)), np.float32)
        begin = 0
        for source in self.sources:
            own = slice(begin, begin + source.width)
            if source.saved is None:
                made[:, own] = source.birth
            else:
                made[:, own] = slots[:, source.column : source.column + source.width]
            begin += source.width
        return made


def plan_slots(
    saved: TableSpec,
    spec: TableSpec,
    slots: Literal["keep", "reset"] | Mapping[str, str] | None,
    is_reset: bool,
    place: str,
) -> SlotPlan:
    """Return where the slots of `spec` come from.

    Raises
    ------
    CheckpointMismatchError
        If the optimizers differ and `slots` does not say what becomes of the state, or says what
        is not possible.
    """
    if slots is None and not is_reset:
        _check_same_but_lr(saved.optimizer, spec.optimizer, place)
        slots = "keep"
    if is_reset or slots == "reset":
        names: dict[str, str] = {}
    elif isinstance(slots, Mapping):
        names = _checked_names(slots, saved.slots, spec.slots, place)
    else:
        fitting = set(saved.slots)
        names = {name: name for name, width in spec.slots if (name, width) in fitting}
        if not names and (saved.slots or spec.slots):
            raise CheckpointMismatchError(
                f'{place}: slots="keep" keeps nothing: the saved slots are {_shown(saved.slots)}, '
                f'those of the optimizer given {_shown(spec.slots)}; slots="reset" begins anew'
            )
    return _plan(names, saved, spec, is_reset or slots == "reset")


def _plan(names: Mapping[str, str], saved: TableSpec, spec: TableSpec, is_reset: bool) -> SlotPlan:
    columns, column = {}, 0
    for name, width in saved.slots:
        columns[name] = column
        column += width
    sources = []
    for name, width in spec.slots:
        birth = spec.optimizer.slot_at_birth(name) if spec.optimizer else 0.0
        origin = names.get(name)
        at = 0 if origin is None else columns[origin]
        sources.append(SlotSource(name, width, origin, at, birth))
    is_identity = (
        saved.slots == spec.slots
        and all(source.saved == source.name for source in sources)
        and not is_reset
    )
    return SlotPlan(tuple(sources), is_identity, is_reset)


def _check_same_but_lr(saved: Optimizer | None, given: Optimizer | None, place: str) -> None:
    configs = [
        {"kind": None} if optimizer is None else optimizer.to_config() | {"lr": None}
        for optimizer in (saved, given)
    ]
    if configs[0] != configs[1]:
        raise CheckpointMismatchError(
            f"{place}: the table was saved with optimizer {saved}; the optimizer given may differ "
            f'in lr alone, got {given}, unless slots= says what becomes of the state: "keep", '
            f'"reset", or a dict from its slots to the saved ones'
        )


def _checked_names(
    names: Mapping[str, str], saved: Slots, new: Slots, place: str
) -> dict[str, str]:
    """Return a dict from new slots to saved ones, whose widths fit."""
    widths, saved_widths = dict(new), dict(saved)
    for name, origin in names.items():
        if not isinstance(name, str) or not isinstance(origin, str):
            raise ArgumentTypeError(
                f"slots must be a dict from names of slots to names of saved ones, "
                f"got {shown(dict(names))}"
            )
        if name not in widths or widths[name] != saved_widths.get(origin):
            raise CheckpointMismatchError(
                f"{place}: slot {name!r} cannot be the saved {origin!r}: the saved slots are "
                f"{_shown(saved)}, those of the optimizer given {_shown(new)}"
            )
    return dict(names)


def _shown(slots: Slots) -> str:
    return ", ".join(f"{name} ({width})" for name, width in slots) or "none"


def converted_clocks(
    state: Mapping[str, int | float],
    saved: Optimizer | None,
    new: Optimizer | None,
    plan: SlotPlan,
) -> dict[str, int | float]:
    """Return the count of training steps, the last of them, and Adam's powers."""
    if plan.is_identity:
        return {}
    if plan.is_reset:
        return dict(TRAINING_AT_BIRTH)
    clocks = {name: state[name] for name in TRAINING_AT_BIRTH}
    clocks.update(dict.fromkeys(POWERS.values(), 1.0))
    if not isinstance(new, Adam | AdamW):
        return clocks
    for source in plan.sources:
        clocks[POWERS[source.name]] = _power(state, saved, source.saved)
    if any(source.saved is None for source in plan.sources):
        clocks["last_train_step"] = -1  # else a training at that step would divide by 1 - 1
    return clocks


def _power(state: Mapping[str, int | float], saved: Optimizer | None, slot: str | None) -> float:
    """Return 1 minus the weight of the gradients in a moment that comes from a saved slot."""
    if slot is None:
        return 1.0
    return float(state[POWERS[slot]]) if isinstance(saved, Adam | AdamW) else 0.0
