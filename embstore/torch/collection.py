"""Collections: many features over the tables of a store, looked up in one native call."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch

from embstore import ArgumentError, Store, Table
from embstore._adapters import Mode, check_mode, check_padding
from embstore.torch import compiled
from embstore.torch.crossing import dtype_of, keys_of, rows_of
from embstore.torch.gradients import Bags
from embstore.torch.inputs import Ids, KeyedTensor, check_offsets, ids_by_feature
from embstore.torch.lookup import Features, FeaturesOf, bags_of, bags_of_each
from embstore.torch.module import TableModule
from embstore.torch.parameter import TableParameter, share_clock
from embstore.torch.state import KEY, attribute_of

Tables = Store | Mapping[str, Table] | Iterable[Table]


class _Collection(TableModule):
    """Tables, the features that look them up, and how many tables one call serves: all."""

    modes: Mapping[str, Mode] = MappingProxyType({})  # of pooling, by feature

    def __init__(
        self,
        tables: Tables,
        features: Mapping[str, str] | None,
        fused: bool,
        output_dtype: torch.dtype | None,
        padding_id: int | None,
    ) -> None:
        super().__init__(fused, output_dtype)
        if isinstance(tables, Store):
            if features is not None:
                raise ArgumentError(
                    f"{type(self).__name__}: a Store has its features; got features= too"
                )
            store = tables
        else:
            store = Store(tables, features)
        adopted = dict(zip(store, self._adopt(store[name] for name in store), strict=True))
        self._by_table = dict(zip(store, self._handles, strict=True))
        if adopted:
            share_clock(adopted.values())
        self._tables = _Tables(adopted, store.features, store)
        self.padding_id = check_padding(padding_id, type(self).__name__)
        for name, parameter in adopted.items():
            self.register_parameter(self._free_attribute(name), parameter)

    @property
    def store(self) -> Store:
        """The store of the tables: save it, evict from it, ask it for stats."""
        return self._tables.store

    def _free_attribute(self, name: str) -> str:
        """Return a table's name as a parameter may have it; "type" and "half" are taken."""
        free = attribute_of(name)
        while hasattr(self, free):
            free += "_"
        return free

    def __getattr__(self, name: str) -> Any:
        """Return the tables for ``table.<name>``, by which torch follows keys of state dicts."""
        if name == KEY and "_tables" in self.__dict__:
            tables = self._tables.parameters.items()
            return SimpleNamespace(**{attribute_of(n): p.table for n, p in tables})
        return super().__getattr__(name)

    def _named_tables(self) -> Mapping[Any, TableParameter]:
        return self._tables.parameters

    def _look_up(
        self, keys: dict[str, Ids], bags: dict[str, Bags] | None, is_training: bool
    ) -> dict[str, torch.Tensor]:
        """Return the rows of each feature, by one call."""
        store, parameters = self._tables.store, self._tables.parameters
        if not keys:
            return {}
        tables = {f: _table_of(store.features, f, type(self).__name__) for f in keys}
        given = {f: keys_of(ids.flat, store[tables[f]]) for f, ids in keys.items()}
        like = next(iter(keys.values())).flat
        asked = Features(store, parameters, given, bags, like, self.fused)
        if not is_training:
            return {
                f: rows_of(rows, like).to(dtype_of(store[tables[f]]))
                for f, rows in asked.read().items()
            }
        by_table = asked.tables()
        whole = FeaturesOf.apply(asked, *(parameters[name] for name in by_table))
        found: dict[str, torch.Tensor] = {}
        for (name, features), rows in zip(by_table.items(), whole, strict=True):
            sizes = [_n_rows(given[f], bags, f) for f in features]
            parts = [rows] if len(sizes) == 1 else rows.split(sizes)
            found.update(
                (f, part.to(dtype_of(store[name]))) for f, part in zip(features, parts, strict=True)
            )
        return {f: found[f] for f in keys}

    def _look_up_compiled(self, ids: dict[str, Ids], mode: str) -> dict[str, torch.Tensor]:
        if not ids:
            return {}
        features, where = self._tables.features, type(self).__name__
        handles = [self._by_table[_table_of(features, f, where)] for f in ids]
        rows = compiled.look_up(self, handles, [*ids.values()], mode, self.padding_id)
        return dict(zip(ids, rows, strict=True))

    def extra_repr(self) -> str:
        """Return what distinguishes the module, for ``print(model)``."""
        return "\n".join(repr(self.store[name]) for name in self.store)


class EmbeddingCollection(_Collection):
    """Rows for the ids of many features, as TorchRec's EmbeddingCollection.

    Parameters
    ----------
    tables
        A `Store`, or `Table`s, by name or as they are.
    features
        From each feature to the name of its table; by default each table is a feature. Features
        that share a table are one batch of it.
    padding_id, fused, output_dtype
        As for `Embedding`, for all features.

    Notes
    -----
    ``forward`` takes a dict from features to ids in any form that `Embedding` takes, or TorchRec's
    KeyedJaggedTensor, and gives a dict of what `Embedding` would give. A feature that the loss does
    not use, of a table that has others, is trained with zero gradients.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import EmbeddingCollection
    >>> tables = [es.Table(dim=4, name=n, optimizer=es.Adagrad()) for n in ("user", "item")]
    >>> features = {"user": "user", "shown": "item", "bought": "item"}
    >>> model = EmbeddingCollection(tables, features)
    >>> ids = {"user": torch.tensor([1, 2]), "bought": torch.tensor([[10, 11], [10, 12]])}
    >>> {feature: tuple(rows.shape) for feature, rows in model(ids).items()}
    {'user': (2, 4), 'bought': (2, 2, 4)}
    """

    def __init__(
        self,
        tables: Tables,
        features: Mapping[str, str] | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(tables, features, fused, output_dtype, padding_id)

    def forward(self, ids: Any) -> dict[str, Any]:
        """Return the rows of each feature, in the form of its ids."""
        given = ids_by_feature(ids, type(self).__name__)
        if torch.compiler.is_compiling():
            return self._compiled(given)
        is_training = self._is_training()
        rows = self._look_up(*bags_of_each(given, self.padding_id), is_training)
        return {f: own.like_given(self._as_output(rows[f])) for f, own in given.items()}

    def _compiled(self, given: dict[str, Ids]) -> dict[str, Any]:
        own = given
        if self.padding_id is not None:
            own = {
                f: ids._replace(offsets=torch.arange(ids.flat.shape[0] + 1, device=ids.flat.device))
                for f, ids in given.items()
            }
        else:
            own = {f: ids._replace(offsets=None) for f, ids in given.items()}
        rows = self._look_up_compiled(own, "sum")
        return {f: ids.like_given(self._as_output(rows[f])) for f, ids in given.items()}


class EmbeddingBagCollection(_Collection):
    """Pooled rows for the bags of many features, as TorchRec's EmbeddingBagCollection.

    Parameters
    ----------
    tables, features
        As for `EmbeddingCollection`.
    mode
        Of pooling, as for `EmbeddingBag`: one for all features, or a dict by feature.
    padding_id, fused, output_dtype
        As for `EmbeddingBag`, for all features.

    Notes
    -----
    ``forward`` takes a dict from features to bags, (n_bags, length) tensors, (values, offsets) or
    (values, offsets, weights) with the number of ids as the last offset, jagged nested tensors, or
    TorchRec's KeyedJaggedTensor; and gives a `KeyedTensor` of (n_bags, dim). Tensors (n,) are n
    bags of one id.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import EmbeddingBagCollection
    >>> tables = [es.Table(dim=4, name=n, optimizer=es.Adagrad()) for n in ("user", "tags")]
    >>> model = EmbeddingBagCollection(tables, mode={"user": "sum", "tags": "mean"})
    >>> tags = (torch.tensor([5, 6, 7]), torch.tensor([0, 2, 3]))
    >>> pooled = model({"user": torch.tensor([1, 2]), "tags": tags})
    >>> pooled.keys(), pooled.values().shape
    (['user', 'tags'], torch.Size([2, 8]))
    """

    def __init__(
        self,
        tables: Tables,
        features: Mapping[str, str] | None = None,
        *,
        mode: Mode | Mapping[str, Mode] = "sum",
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(tables, features, fused, output_dtype, padding_id)
        where = type(self).__name__
        if isinstance(mode, Mapping):
            unknown = [f for f in mode if f not in self.store.features]
            if unknown or len(mode) < len(self.store.features):
                raise ArgumentError(
                    f"{where}: mode must have the features {list(self.store.features)}, got "
                    f"{list(mode)}"
                )
            self.modes = {f: check_mode(m, where) for f, m in mode.items()}
        else:
            self.modes = dict.fromkeys(self.store.features, check_mode(mode, where))

    def forward(self, ids: Any) -> KeyedTensor:
        """Return the pooled rows of each feature."""
        where = type(self).__name__
        given = ids_by_feature(ids, where)
        if torch.compiler.is_compiling():
            return self._compiled(given)
        is_training = self._is_training()
        by_mode: dict[str, tuple[dict[str, Ids], dict[str, Bags]]] = {}
        for feature, own in given.items():
            mode = self.modes.get(feature)
            if mode is None:
                _table_of(self.store.features, feature, where)
            keys, bags = by_mode.setdefault(str(mode), ({}, {}))
            bagged = as_bags(own, f"{where}: {feature!r}", self.padding_id is not None)
            flat, bags[feature] = bags_of(bagged, str(mode), self.padding_id, is_training)
            keys[feature] = own._replace(flat=flat)
        found: dict[str, torch.Tensor] = {}
        for keys, bags in by_mode.values():
            found |= self._look_up(keys, bags, is_training)
        return KeyedTensor({f: self._as_output(found[f]) for f in given})

    def _compiled(self, given: dict[str, Ids]) -> KeyedTensor:
        where = type(self).__name__
        by_mode: dict[str, dict[str, Ids]] = {}
        for feature, own in given.items():
            _table_of(self._tables.features, feature, where)
            bagged = as_bags(own, f"{where}: {feature!r}", self.padding_id is not None)
            by_mode.setdefault(str(self.modes[feature]), {})[feature] = bagged
        found: dict[str, torch.Tensor] = {}
        for mode, bags in by_mode.items():
            found |= self._look_up_compiled(bags, mode)
        return KeyedTensor({f: self._as_output(found[f]) for f in given})


class _Tables:
    """The parameters of a collection by table, and their store; a copy has copies of them."""

    def __init__(
        self, parameters: Mapping[str, TableParameter], features: Mapping[str, str], store: Store
    ) -> None:
        self.parameters = dict(parameters)
        self.features = dict(features)
        self.store = store

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Tables":
        parameters = {name: p.__deepcopy__(memo) for name, p in self.parameters.items()}
        store = Store({name: p.table for name, p in parameters.items()}, self.features)
        return _Tables(parameters, self.features, store)


def _table_of(tables: Mapping[str, str], feature: str, where: str) -> str:
    if feature not in tables:
        raise ArgumentError(f"{where}: unknown feature {feature!r}; there are {list(tables)}")
    return tables[feature]


def _n_rows(keys: Any, bags: dict[str, Bags] | None, feature: str) -> int:
    return len(keys) if bags is None else len(bags[feature].offsets) - 1


def as_bags(ids: Ids, where: str, checks: bool) -> Ids:
    """Return ids with offsets, which are checked if asked; a plain tensor (n,) is n bags of one."""
    if ids.weights is not None and ids.weights.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            f"{where}: weights ask for gradients, which a collection does not give; use an "
            f"EmbeddingBag or ShardedEmbeddingBag, or detach() them"
        )
    if ids.offsets is not None:
        if checks:
            check_offsets(ids.offsets, ids.flat.shape[0], where)
        return ids
    shape = ids.shape
    assert shape is not None
    if len(shape) not in (1, 2):
        raise ArgumentError(f"{where}: bags must be (n,) or (n_bags, length), got {tuple(shape)}")
    length = 1 if len(shape) == 1 else shape[1]
    return ids._replace(offsets=torch.arange(shape[0] + 1, device=ids.flat.device) * length)
