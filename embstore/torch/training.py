"""The optimizer of a model's tables, beside that of its dense part."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from embstore import ArgumentError, ArgumentTypeError
from embstore.torch.clock import Clock
from embstore.torch.gradients import Lookup
from embstore.torch.lookup import apply_many
from embstore.torch.parameter import TableParameter, share_clock


class TableOptimizer(torch.optim.Optimizer):
    """Trains the tables of a model: each by the optimizer that it was made with.

    A group of parameters is one table; its ``lr`` is that of the table, and schedulers may change
    it. All that is there of a torch optimizer works: zero_grad, closures, hooks, lr schedulers,
    GradScaler, state_dict (learning rates; the rest is in the tables' checkpoints). The tables
    share a step, which each call of `step` moves by one.

    Parameters
    ----------
    parameters
        `TableParameter`s.

    Attributes
    ----------
    clock : Clock
        The step that the tables share: ``clock.now``, and ``clock.set(step)``.

    Notes
    -----
    Optimizers are lazy: weight decay, momenta and decay of moments touch the rows of the batch
    alone. ``torch.optim.SparseAdam`` does the same; ``torch.optim.Adam`` on a dense embedding moves
    every row in every step.
    """

    trains_tables = True

    def __init__(self, parameters: Iterable[TableParameter]) -> None:
        tables = [*dict.fromkeys(parameters)]
        if not tables:
            raise ArgumentError("there is no table to train in this model")
        self._rates: dict[str, float] = {}  # by table, as they were at the last step
        super().__init__([{"params": [parameter]} for parameter in tables], {})

    @property
    def clock(self) -> Clock:
        """The step of its tables, and of those that share it with them."""
        (first, *_) = self.param_groups[0]["params"]
        return cast(Clock, first.clock)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train one more table: ``{"params": [module.weight]}``, with the ``lr`` of its own."""
        given = param_group["params"]
        for parameter in [given] if isinstance(given, torch.Tensor) else list(given):
            _check_trainable(parameter)
            clock = share_clock([parameter, *(g["params"][0] for g in self.param_groups)])
            own = {"lr": _present_rate(parameter, clock.now), "table": parameter.table.name}
            self._rates[parameter.key] = own["lr"]
            parameter.trainer = weakref.ref(self)
            super().add_param_group({**own, **param_group, "params": [parameter]})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Train all tables with the gradients of the backward passes since `zero_grad`.

        Parameters
        ----------
        closure
            Evaluates the model again and returns the loss, as for other optimizers.

        Returns
        -------
        The loss of the closure, or None.

        Raises
        ------
        NonFiniteError
            If a key's gradient has NaN or infinity (tables with ``on_nonfinite="raise"``); the
            tables before it are trained, the step is not over.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.take_rates()
        parameters, clock = [group["params"][0] for group in self.param_groups], self.clock
        if any(parameter.is_shard for parameter in parameters):
            from embstore.torch.sharded.gradients import send_gradients

            send_gradients(parameters)
        together: dict[int, list[tuple[TableParameter, Lookup]]] = {}
        for parameter in parameters:
            only = parameter.gradients.only_lookup()
            if only is not None and only.store is not None:
                together.setdefault(id(only.store), []).append((parameter, only))
            else:
                parameter.gradients.apply(clock.now)
        for lookups in together.values():
            apply_many(lookups, clock.now)
        clock.advance()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; there is no other way for tables than None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.gradients.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the learning rates of `state_dict`, which must be of tables of the same names."""
        names = [group["table"] for group in self.param_groups]
        given = [group.get("table") for group in state_dict["param_groups"]]
        if given != names:
            raise ArgumentError(f"expected the state of an optimizer of {names}, got {given}")
        super().load_state_dict(state_dict)

    def take_rates(self) -> None:
        """Give the tables the learning rates of their groups.

        Where a table's own was set later, the group takes that.
        """
        for group in self.param_groups:
            (parameter,) = group["params"]
            table = parameter.table
            if callable(table.lr):
                if "initial_lr" in group:
                    raise ArgumentError(
                        f"table {table.name!r} has a schedule of its learning rate, and a "
                        f"scheduler of torch was made for it; give the table a number instead"
                    )
                group["lr"] = table.lr(parameter.clock.now)
            elif group["lr"] == self._rates.get(parameter.key, table.lr):
                group["lr"] = _present_rate(parameter, self.clock.now)  # which may be set by hand
            else:
                table.lr = float(group["lr"])
            self._rates[parameter.key] = group["lr"]


def _check_trainable(parameter: object) -> None:
    if not isinstance(parameter, TableParameter):
        raise ArgumentTypeError(
            f"TableOptimizer: expected TableParameters, got {type(parameter).__name__}; "
            f"embstore.torch.optimizer(model) finds them"
        )
    if parameter.table.optimizer is None:
        raise ArgumentError(
            f"table {parameter.table.name!r} has no optimizer: make it with one, as in "
            f"Table(dim=..., optimizer=embstore.Adagrad(lr=0.05)), or freeze its module by "
            f"requires_grad_(False)"
        )


def _present_rate(parameter: TableParameter, step: int) -> float:
    lr = parameter.table.lr
    if lr is None:
        raise ArgumentError(
            f"table {parameter.table.name!r} has no learning rate: a schedule is not saved with a "
            f"table; set table.lr to a number or a callable of the step"
        )
    return lr(step) if callable(lr) else lr


def optimizer(*models: torch.nn.Module) -> TableOptimizer:
    """Return the optimizer of all tables in models, but for those that are frozen.

    Parameters
    ----------
    *models
        Modules that hold embstore's.

    Returns
    -------
    TableOptimizer

    Raises
    ------
    ArgumentError
        If there is no table to train, or one was made without an optimizer.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding, dense_parameters, optimizer
    >>> embedding = Embedding(dim=4, optimizer=es.Adam(lr=0.01), name="query")
    >>> model = torch.nn.Sequential(embedding, torch.nn.Linear(4, 1))
    >>> sparse, dense = optimizer(model), torch.optim.Adam(dense_parameters(model))
    >>> model(torch.tensor([7, 8])).sum().backward()
    >>> sparse.step(), dense.step()
    (None, None)
    """
    found = [p for model in models for p in model.parameters() if isinstance(p, TableParameter)]
    return TableOptimizer(p for p in found if p.is_trained)


def dense_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a model that are not tables, for an optimizer of torch.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding, dense_parameters
    >>> embedding = Embedding(dim=4, name="page")
    >>> model = torch.nn.Sequential(embedding, torch.nn.Linear(4, 1))
    >>> [tuple(p.shape) for p in dense_parameters(model)]
    [(1, 4), (1,)]
    """
    return [p for p in model.parameters() if not isinstance(p, TableParameter)]
