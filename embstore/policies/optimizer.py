"""Optimizers: their parameters, checks and slots; for the formulas see docs/semantics.md, 6.

All are lazy: moments, weight decay and clipping touch only the rows of the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import Policy, check_float, policy_from_config, shown

LearningRate = float | Callable[[int], float] | None
"""A number, a schedule (a callable of the step), or None: to be given with every call."""

Slots = tuple[tuple[str, int], ...]
"""Names and widths, in float32, of the optimizer state of one row."""


class Optimizer(Policy):
    """The base of the optimizers.

    Each has `lr`, and, acting on a key's gradient after its duplicates were summed, in this
    order: `clip_value` (each component to [-c, c]), `clip_norm` (the Euclidean norm to at most
    c), `weight_decay` (d times the row is added to the gradient; AdamW decouples it).

    Examples
    --------
    >>> import embstore as es
    >>> es.SGD(lr=0.1, clip_norm=1.0).to_config()["clip_norm"]
    1.0
    """

    __slots__ = ()
    lr: LearningRate
    weight_decay: float
    clip_norm: float | None
    clip_value: float | None

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        raise NotImplementedError

    def slot_at_birth(self, name: str) -> float:
        """Return the number that fills a slot of a new row."""
        return float(getattr(self, "initial_accumulator", 0.0)) if name == "accumulator" else 0.0

    def to_config(self) -> dict[str, Any]:
        """Return the optimizer as a dict for JSON; a schedule is written as null."""
        config = Policy.to_config(self)
        if callable(self.lr):
            config["lr"] = None
        return config

    def check_lr(self, lr: object, where: str) -> float:
        """Return `lr` as a float that this optimizer can use."""
        return check_float(where, "lr", lr, low=0.0)

    def _check_common(self) -> None:
        where = type(self).__name__
        if self.lr is not None and not callable(self.lr):
            self._set("lr", self.check_lr(self.lr, where))
        self._set("weight_decay", check_float(where, "weight_decay", self.weight_decay, low=0.0))
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None:
                self._set(name, check_float(where, name, value, above=0.0))

    def _check_non_negative(self, *names: str) -> None:
        for name in names:
            value = check_float(type(self).__name__, name, getattr(self, name), low=0.0)
            self._set(name, value)


@dataclass(frozen=True, slots=True)
class SGD(Optimizer):
    """Stochastic gradient descent (``torch.optim.SGD`` without dampening).

    A learning rate is asked for, as torch's older versions did: there is no useful default.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=2, optimizer=es.SGD(lr=0.5), initializer=es.Constant(1.0))
    >>> batch = table.find_or_insert([7], step=0)
    >>> _ = table.apply_gradients(batch, np.ones((1, 2), np.float32), step=0)
    >>> table.find([7])
    array([[0.5, 0.5]], dtype=float32)
    """

    lr: LearningRate
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        self._check_common()
        self._check_non_negative("momentum")
        if not isinstance(self.nesterov, bool):
            raise ArgumentTypeError(
                f"SGD: nesterov must be True or False, got {shown(self.nesterov)}"
            )
        if self.nesterov and self.momentum == 0.0:
            raise ArgumentError("SGD: nesterov needs a momentum greater than 0, got momentum=0.0")

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("momentum", dim),) if self.momentum else ()


@dataclass(frozen=True, slots=True)
class Adagrad(Optimizer):
    """Adagrad (``torch.optim.Adagrad`` without lr_decay).

    Examples
    --------
    >>> import embstore as es
    >>> es.Adagrad(lr=0.05).slots(16)
    (('accumulator', 16),)
    """

    lr: LearningRate = 0.01
    initial_accumulator: float = 0.0
    eps: float = 1e-10
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        self._check_common()
        self._check_non_negative("initial_accumulator", "eps")

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("accumulator", dim),)


@dataclass(frozen=True, slots=True)
class RowWiseAdagrad(Optimizer):
    """Adagrad with one accumulator a row: the mean of the squares (FBGEMM's rowwise Adagrad).

    Examples
    --------
    >>> import embstore as es
    >>> es.RowWiseAdagrad(lr=0.1).slots(16)
    (('accumulator', 1),)
    """

    lr: LearningRate = 0.01
    initial_accumulator: float = 0.0
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        self._check_common()
        self._check_non_negative("initial_accumulator", "eps")

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("accumulator", 1),)


def _check_adam(optimizer: "Adam | AdamW") -> None:
    """Check what Adam and AdamW share."""
    optimizer._check_common()
    optimizer._check_non_negative("eps")
    where = type(optimizer).__name__
    betas = optimizer.betas
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ArgumentTypeError(f"{where}: betas must be a pair of numbers, got {shown(betas)}")
    checked = tuple(check_float(where, f"betas[{i}]", b, 0.0, 1.0) for i, b in enumerate(betas))
    if max(checked) >= 1.0:
        raise ArgumentError(f"{where}: betas must be less than 1, got {shown(betas)}")
    optimizer._set("betas", checked)


@dataclass(frozen=True, slots=True)
class Adam(Optimizer):
    """Adam on the rows of the batch (``torch.optim.SparseAdam``).

    Its t is the table's count of distinct training steps, not a count for each row.

    Examples
    --------
    >>> import embstore as es
    >>> es.Adam(lr=lambda step: 1e-3 * 0.9 ** (step // 1000)).slots(16)
    (('exp_avg', 16), ('exp_avg_sq', 16))
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        _check_adam(self)

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("exp_avg", dim), ("exp_avg_sq", dim))


@dataclass(frozen=True, slots=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (``torch.optim.AdamW``), on the rows of the batch.

    Examples
    --------
    >>> import embstore as es
    >>> es.AdamW().weight_decay
    0.01
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        _check_adam(self)

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("exp_avg", dim), ("exp_avg_sq", dim))


@dataclass(frozen=True, slots=True)
class FTRL(Optimizer):
    """Follow the regularized leader (TensorFlow's Ftrl with learning_rate_power = -0.5).

    Examples
    --------
    >>> import embstore as es
    >>> es.FTRL(lr=0.05, l1=0.1).slots(16)
    (('accumulator', 16), ('linear', 16))
    """

    lr: LearningRate = 0.001
    initial_accumulator: float = 0.1
    l1: float = 0.0
    l2: float = 0.0
    beta: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        self._check_common()
        self._check_non_negative("initial_accumulator", "l1", "l2", "beta")

    def check_lr(self, lr: object, where: str) -> float:
        """Return `lr` as a float that this optimizer can use: FTRL divides by it."""
        return check_float(where, "lr", lr, above=0.0)

    def slots(self, dim: int) -> Slots:
        """Return name and width of each slot of a row of `dim` values."""
        return (("accumulator", dim), ("linear", dim))


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer that `config`, made by ``to_config``, describes."""
    kinds: tuple[type[Optimizer], ...] = (SGD, Adagrad, RowWiseAdagrad, Adam, AdamW, FTRL)
    return policy_from_config("Optimizer", config, kinds)
