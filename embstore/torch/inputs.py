"""What callers hand over as ids: tensors of any shape, jagged ones, KeyedJaggedTensors."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from embstore import ArgumentError, ArgumentTypeError


class Jagged(NamedTuple):
    """Lists of different lengths: list i holds ``values[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    values : (n,) ids, or (n, dim) rows
    offsets : (n_lists + 1,) int64
    weights : (n,) float32 or None
        Of ids that are pooled.

    Examples
    --------
    >>> import torch
    >>> from embstore.torch import Jagged
    >>> Jagged(torch.tensor([7, 5, 7]), torch.tensor([0, 2, 2, 3])).lengths()
    tensor([2, 0, 1])
    """

    values: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor | None = None

    def lengths(self) -> torch.Tensor:
        """Return the length of each list, (n_lists,)."""
        return self.offsets.diff()

    def to_padded(self, length: int | None = None, padding: float = 0) -> torch.Tensor:
        """Return (n_lists, length) values, or (n_lists, length, dim) rows.

        Longer lists are cut; `length` is that of the longest by default.
        """
        lengths = self.lengths()
        longest = int(lengths.max()) if len(lengths) else 0
        n = longest if length is None else length
        column = torch.arange(n, device=self.values.device)
        is_there = column < lengths[:, None]
        place = (self.offsets[:-1, None] + column)[is_there]
        shape = (len(lengths), n, *self.values.shape[1:])
        padded = self.values.new_full(shape, padding)
        return padded.masked_scatter(
            is_there.reshape(len(lengths), n, *(1,) * (self.values.dim() - 1)),
            self.values[place],
        )


class KeyedTensor:
    """The pooled rows of several features, as TorchRec's KeyedTensor.

    Examples
    --------
    >>> import torch
    >>> from embstore.torch import KeyedTensor
    >>> pooled = KeyedTensor({"user": torch.zeros(5, 2), "item": torch.zeros(5, 3)})
    >>> pooled.keys(), pooled.values().shape, pooled["item"].shape
    (['user', 'item'], torch.Size([5, 5]), torch.Size([5, 3]))
    """

    def __init__(self, by_feature: Mapping[str, torch.Tensor]) -> None:
        self._by_feature = dict(by_feature)

    def keys(self) -> list[str]:
        """Return the features."""
        return [*self._by_feature]

    def values(self) -> torch.Tensor:
        """Return the rows of all features side by side, (n_bags, sum of dims)."""
        return torch.cat([*self._by_feature.values()], dim=1)

    def length_per_key(self) -> list[int]:
        """Return the dim of each feature."""
        return [rows.shape[1] for rows in self._by_feature.values()]

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Return the rows by feature."""
        return dict(self._by_feature)

    def __getitem__(self, feature: str) -> torch.Tensor:
        return self._by_feature[feature]

    def __len__(self) -> int:
        return len(self._by_feature)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_feature)


class Ids(NamedTuple):
    """One feature's ids, flat; with `offsets` they are lists."""

    flat: torch.Tensor
    shape: torch.Size | None  # of a plain tensor
    offsets: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    nested: torch.Tensor | None = None

    def like_given(self, rows: torch.Tensor) -> Any:
        """Return rows (n, dim) in the form of the ids."""
        if self.shape is not None:
            return rows.view(*self.shape, rows.shape[-1])
        if self.nested is not None:
            return torch.nested.nested_tensor_from_jagged(rows, self.nested.offsets())
        assert self.offsets is not None
        return Jagged(rows, self.offsets, self.weights)


def check_offsets(offsets: torch.Tensor, n: int, where: str) -> None:
    """Raise unless offsets part n ids into lists, as a table asks it of those it is given."""
    if offsets.dim() != 1 or offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{where}: offsets must be (n_bags + 1,) integers, got {offsets.dtype} of shape "
            f"{tuple(offsets.shape)}"
        )
    if torch.compiler.is_compiling():
        return  # the operator looks at their values
    ends = [] if len(offsets) == 0 else [int(offsets[0]), int(offsets[-1])]
    if ends != [0, n] or bool((offsets.long().diff() < 0).any()):
        raise ArgumentError(
            f"{where}: offsets must begin with 0, never decrease and end with {n} (the number of "
            f"ids), got {_shown(offsets)}"
        )


def check_weights(weights: Any, n: int, where: str) -> None:
    """Raise unless there is a weight for each id."""
    if not isinstance(weights, torch.Tensor):
        raise ArgumentTypeError(f"{where}: weights must be a tensor, got {type(weights).__name__}")
    if weights.numel() != n:
        raise ArgumentError(
            f"{where}: weights must be one for each id, {n}, got shape {tuple(weights.shape)}"
        )


def _shown(offsets: torch.Tensor) -> str:
    most = 8
    return f"{offsets[:most].tolist()}{' and so on' if len(offsets) > most else ''}"


def as_ids(given: Any, where: str) -> Ids:
    """Return ids of any accepted form; `where` names the argument."""
    if isinstance(given, torch.Tensor):
        if not given.is_nested:
            return Ids(given.reshape(-1), given.shape)
        if given.layout != torch.jagged or given.dim() != 2:
            raise ArgumentTypeError(
                f"{where}: a nested tensor must be of layout torch.jagged and (n_lists, j), "
                f"got {given.layout} with {given.dim()} dimensions"
            )
        if given.lengths() is not None:
            raise ArgumentTypeError(
                f"{where}: lists of a nested tensor must follow one another, got one with holes "
                f"(of lengths beside its offsets); call contiguous() first"
            )
        return Ids(given.values(), None, given.offsets(), nested=given)
    if isinstance(given, tuple | list):
        if len(given) not in (2, 3) or not all(isinstance(g, torch.Tensor) for g in given[:2]):
            raise ArgumentTypeError(
                f"{where}: a pair must be (values, offsets), two tensors, got "
                f"({', '.join(type(g).__name__ for g in given)})"
            )
        values, offsets, weights = (*given, None)[:3]
        if values.dim() != 1:
            raise ArgumentError(f"{where}: values must be (n,), got {tuple(values.shape)}")
        if weights is not None:
            check_weights(weights, len(values), where)
            weights = weights.reshape(-1)
        return Ids(values, None, offsets, weights)
    if hasattr(given, "values") and hasattr(given, "offsets"):  # TorchRec's JaggedTensor
        weights = given.weights_or_none() if hasattr(given, "weights_or_none") else None
        return Ids(given.values(), None, given.offsets(), weights)
    raise ArgumentTypeError(
        f"{where}: ids must be a tensor, (values, offsets), a jagged nested tensor or a "
        f"JaggedTensor, got {type(given).__name__}"
    )


def ids_by_feature(given: Any, where: str) -> dict[str, Ids]:
    """Return the ids of each feature of a dict, or of TorchRec's KeyedJaggedTensor."""
    if isinstance(given, Mapping):
        return {feature: as_ids(ids, f"{where}: {feature!r}") for feature, ids in given.items()}
    if all(hasattr(given, name) for name in ("keys", "values", "offsets")):
        return dict(_of_keyed_jagged(given))
    raise ArgumentTypeError(
        f"{where}: expected a dict from features to ids, or a KeyedJaggedTensor, got "
        f"{type(given).__name__}"
    )


def _of_keyed_jagged(given: Any) -> Iterable[tuple[str, Ids]]:
    """Yield the features of what looks like TorchRec's KeyedJaggedTensor."""
    features, values, offsets = given.keys(), given.values(), given.offsets()
    weights = given.weights_or_none() if hasattr(given, "weights_or_none") else None
    if hasattr(given, "stride_per_key"):
        strides = list(given.stride_per_key())
    else:
        strides = [(len(offsets) - 1) // max(1, len(features))] * len(features)
    if sum(strides) != len(offsets) - 1:
        raise ArgumentError(
            f"a KeyedJaggedTensor of {len(features)} keys must have as many offsets each, "
            f"got {len(offsets)} offsets for strides {strides}"
        )
    ends = [0, *accumulate(strides)]
    bounds = offsets[ends].tolist()
    for feature, (i, j), (first, last) in zip(
        features, pairwise(ends), pairwise(bounds), strict=True
    ):
        own = None if weights is None else weights[first:last]
        yield feature, Ids(values[first:last], None, offsets[i : j + 1] - first, own)
