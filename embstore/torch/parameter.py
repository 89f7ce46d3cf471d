"""TableParameter: what stands for a table among a model's parameters, and the names of tables.

One table has one parameter, whatever number of modules use it. It lives in the process; its rows
do not pass through it.
"""

import copy
import tempfile
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore.torch.clock import Clock
from embstore.torch.gradients import Gradients
from embstore.torch.names import OF_MODULES, Handle, free_key

if TYPE_CHECKING:
    from embstore.torch.training import TableOptimizer


class TableParameter(torch.nn.Parameter):
    """A table among the parameters of a model: one number that nobody trains, and a gradient.

    ``grad`` is what `TableOptimizer.step` will train the table with: (n, dim) float32, a row for
    each key that had a row at its lookup, duplicates summed. It is made when it is read, and what
    is done to it in place counts: so clip_grad_norm_ and GradScaler work as with any parameter.

    Attributes
    ----------
    table : Table
    clock : Clock
        Shared by the parameters of one `TableOptimizer`.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding
    >>> embedding = Embedding(dim=2, optimizer=es.SGD(lr=1.0), name="item")
    >>> embedding(torch.tensor([7, 5, 7])).sum().backward()
    >>> embedding.weight.grad.shape, embedding.weight.grad.sum()
    (torch.Size([2, 2]), tensor(6.))
    """

    table: Table
    clock: Clock
    gradients: Gradients
    is_frozen: bool
    is_shard: bool
    anchor: torch.Tensor
    key: str
    trainer: "weakref.ref[TableOptimizer] | None"
    handle: Handle

    def __new__(cls, table: Table, is_shard: bool = False) -> Self:
        """Make the parameter of a table; `of` gives the one that it has."""
        self: Self = super().__new__(cls, torch.zeros(1), not is_shard)
        self.table = table
        self.clock = Clock.of(table)
        self.gradients = Gradients(table)
        self.is_frozen = False
        self.is_shard = is_shard
        self.trainer = None
        self.anchor = torch.zeros(1, requires_grad=True)  # the parameter's place in graphs
        self.key = free_key(table.name)
        self.handle = Handle(self.key, table, self.anchor)
        _OF_TABLES[id(table)] = self
        OF_MODULES[self.key] = self
        return self

    @classmethod
    def of(cls, table: Table, is_shard: bool = False) -> Self:
        """Return the parameter of a table, which it has had or gets now."""
        if not isinstance(table, Table):
            raise ArgumentTypeError(f"expected an embstore.Table, got {type(table).__name__}")
        known = _OF_TABLES.get(id(table))
        if known is None:
            known = cls(table, is_shard)
        if known.is_shard != is_shard:
            raise ArgumentError(
                f"table {table.name!r} is used by sharded modules and by others; a table is either"
            )
        return known

    @staticmethod
    def known(table: Table) -> "TableParameter | None":
        """Return the parameter that a table has, if it has one."""
        return _OF_TABLES.get(id(table))

    @property
    def is_trained(self) -> bool:
        """Whether lookups in training count, insert, and ask for gradients."""
        return not self.is_frozen

    @property
    def requires_grad(self) -> bool:
        """What DDP and optimizers ask; setting it freezes as `requires_grad_`. False of shards."""
        return bool(super().requires_grad)

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        self.requires_grad_(requires_grad)

    def take_rate(self) -> None:
        """Take the learning rate of the optimizer, which a scheduler may have changed."""
        trainer = None if self.trainer is None else self.trainer()
        if trainer is not None:
            trainer.take_rates()

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient of each key that was looked up, (n, dim), or None if there is none."""
        return self.gradients.sums()

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        if value is not None:
            raise ArgumentError(
                f"the gradient of table {self.table.name!r} can be cleared by None, and changed "
                f"in place; it cannot be replaced"
            )
        self.gradients.clear()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze the table (False): lookups then read and count nothing; or train it again."""
        self.is_frozen = self.handle.is_frozen = not requires_grad
        return self if self.is_shard else super().requires_grad_(requires_grad)

    def register_hook(self, hook: object) -> Any:
        """Refuse a hook: backward leaves gradients in the table, and gives the parameter none."""
        raise ArgumentTypeError(
            f"a hook of table {self.table.name!r} would get no gradient: hook the rows that the "
            f"module gives, or read weight.grad in register_post_accumulate_grad_hook"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self) not in memo:
            copied = type(self)(_copy(self.table), self.is_shard)
            copied.requires_grad_(self.is_trained)
            copied.clock = copy.deepcopy(self.clock, memo)  # shared by those that share this one
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: object) -> Any:
        raise ArgumentTypeError(
            f"table {self.table.name!r} cannot be pickled. Save a model by its state_dict(), or "
            f"the table by table.save(path); in another process open it by "
            f"embstore.serving.open(path)"
        )

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"TableParameter({self.table!r})"


def parameter_by_key(key: str) -> TableParameter:
    """Return the parameter that a compiled graph names."""
    known = OF_MODULES.get(key)
    if known is None:
        raise ArgumentError(
            f"no table is known by the name {key!r} in this process; there are {sorted(OF_MODULES)}"
        )
    return known


def share_clock(parameters: Iterable[TableParameter]) -> Clock:
    """Let tables, and those that share a step with one of them, share the latest of their steps."""
    clocks = {parameter.clock for parameter in parameters}
    latest = max(clocks, key=lambda clock: clock.now)
    for parameter in [*OF_MODULES.values()]:
        if parameter.clock in clocks:
            parameter.clock = latest
    return latest


def _copy(table: Table) -> Table:
    """Return an equal table, by way of a checkpoint: everything that a table is lies in one."""
    with tempfile.TemporaryDirectory(prefix="embstore-") as path:
        table.save(path)
        copied = Table.load(path, device=table.device, hbm_bytes=table.hbm_bytes)
    if table.optimizer is not None:
        copied.lr = table.lr
    return copied


def _check_optimizer(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise if an optimizer of torch was given a table to train."""
    if getattr(optimizer, "trains_tables", False):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, TableParameter):
                raise ArgumentError(
                    f"table {parameter.table.name!r} was given to {type(optimizer).__name__}; "
                    f"tables are trained by embstore.torch.optimizer(model), and "
                    f"{type(optimizer).__name__} is for embstore.torch.dense_parameters(model)"
                )


_OF_TABLES: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

register_optimizer_step_pre_hook(_check_optimizer)
