"""TableParameter: what stands for a table among a model's parameters, and the names of tables.

One table has one parameter, whatever number of modules use it. It lives in the process; its rows
do not pass through it.
"""

import tempfile
import weakref
from typing import Any, Self

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore.torch.clock import Clock
from embstore.torch.gradients import Gradients


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
    is_fused: bool
    is_shard: bool
    anchor: torch.Tensor
    key: str

    def __new__(cls, table: Table, is_shard: bool = False) -> Self:
        """Make the parameter of a table; `of` gives the one that it has."""
        self: Self = super().__new__(cls, torch.zeros(1), not is_shard)
        self.table = table
        self.clock = Clock.of(table)
        self.gradients = Gradients(table)
        self.is_frozen = False
        self.is_fused = False
        self.is_shard = is_shard
        self.anchor = torch.zeros(1, requires_grad=True)  # what makes autograd call backward
        self.key = _free_key(table.name)
        _OF_TABLES[id(table)] = self
        _BY_KEY[self.key] = self
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

    @property
    def is_trained(self) -> bool:
        """Whether lookups in training count, insert, and ask for gradients."""
        return not self.is_frozen and (self.is_shard or self.requires_grad)

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
        self.is_frozen = not requires_grad
        return self if self.is_shard else super().requires_grad_(requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self) not in memo:
            copied = type(self)(_copy(self.table), self.is_shard)
            copied.is_frozen, copied.is_fused = self.is_frozen, self.is_fused
            copied.clock.set(self.clock.now)
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
    known = _BY_KEY.get(key)
    if known is None:
        raise ArgumentError(
            f"no table is known by the name {key!r} in this process; there are {sorted(_BY_KEY)}"
        )
    return known


def _free_key(name: str) -> str:
    key, n = name, 1
    while key in _BY_KEY:
        n += 1
        key = f"{name}#{n}"
    return key


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
_BY_KEY: weakref.WeakValueDictionary[str, TableParameter] = weakref.WeakValueDictionary()

register_optimizer_step_pre_hook(_check_optimizer)
