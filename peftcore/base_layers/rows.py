"""Some output rows of a fused linear layer, seen as a layer of their own: q, k and v of one ``qkv``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftcore.base_layers.base import BaseLayer
from peftcore.exceptions import ConfigError, MergeError, TargetError, UnsupportedLayerError

#: Output rows of a fused layer: contiguous, or given one by one ``[rows]``.
Rows = slice | Tensor
#: How a fused layer's rows are shared out, see :func:`parts_of`.
PartsSpec = Sequence[str] | Mapping[str, Any]


class RowsLayer(BaseLayer):
    """A view of some output rows of a linear layer.

    It reads and writes those rows only, and through the base view, whatever its storage.

    Args:
        base: A view of kind linear.
        rows: Which of its outputs, a slice or an index ``[rows]``.

    Raises:
        UnsupportedLayerError: The base is no linear layer.
    """

    kind: ClassVar[str] = "linear"

    def __init__(self, base: BaseLayer, rows: Rows) -> None:
        if base.kind != "linear":
            raise UnsupportedLayerError(
                f"Only linear layers can be seen in parts, and {type(base.layer).__name__} is of kind {base.kind}."
            )
        super().__init__(base.layer)
        self.base = base
        self.rows = rows
        self.weight_name = base.weight_name
        self.additive = base.additive
        self.in_features = base.in_features
        if isinstance(rows, slice):
            self.out_features = len(range(base.out_features)[rows])
        else:
            self.out_features = rows.numel()

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def read_weight(self) -> Tensor:
        """Return the rows of the base's weight, a view of it where they are contiguous."""
        return self.base.weight()[self._index()]

    def add_(self, delta: Tensor) -> None:
        """Add a delta ``[rows, in]`` to the rows of the base."""
        zeros = torch.zeros(self.base.weight_shape, device=self.device, dtype=delta.dtype)
        self.base.add_(self._among_all(delta, zeros))

    def replace_(self, weight: Tensor) -> None:
        """Write a weight ``[rows, in]`` into the rows of the base."""
        self.base.replace_(self._among_all(weight, self.base.read_weight().detach().clone()))

    def _among_all(self, part: Tensor, full: Tensor) -> Tensor:
        """Put a part into its rows of a full tensor ``[out, ...]``."""
        if part.shape[:1] != (self.out_features,) or part.shape[1:] != full.shape[1:]:
            wanted = [self.out_features, *full.shape[1:]]
            raise MergeError(f"A tensor of shape {list(part.shape)} does not fit these rows, of shape {wanted}.")
        full[self._index()] = part.detach().to(full.device, full.dtype)
        return full

    def _index(self) -> Rows:
        return self.rows if isinstance(self.rows, slice) else self.rows.to(self.device)

    def read_bias(self) -> Tensor | None:
        """The rows of the base's bias, ``[rows]``, or None."""
        return None if self.base.bias is None else self.base.bias[self._index()]

    def set_bias_(self, bias: Tensor | None) -> None:
        """Write the rows of the base's bias; where it had none, one is made that is zero in the other rows.

        Raises:
            MergeError: The bias has another shape, or is None: it can be taken away from the whole layer only.
        """
        if bias is None:
            raise MergeError("A part of a fused layer can't lose its bias alone; set it to zeros instead.")
        stored = self.base.bias
        zeros = torch.zeros(self.base.out_features, device=self.device, dtype=self.dtype)
        self.base.set_bias_(self._among_all(bias, zeros if stored is None else stored.detach().clone()))

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer and keep these rows of its output, ``[..., rows]``."""
        return self.base.forward(*args, **kwargs)[..., self._index()]

    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the base's operation with ``weight`` ``[any, in]``."""
        return self.base.apply(weight, *args, **kwargs)


def parts_of(base: BaseLayer, spec: PartsSpec) -> dict[str, Rows]:
    """Return which output rows of a fused layer belong to each of its parts.

    Args:
        base: The fused layer's view.
        spec: One of

            * a list of names: equal, contiguous parts (``["q", "k", "v"]``);
            * a mapping of names to shares: contiguous parts in these proportions (``{"q": 4, "k": 1, "v": 1}``);
            * ``{"parts": either of these, "groups": n}``: the parts alternate in each of n groups, so that the output
              is ``[groups, sum of shares, unit]``; Megatron and GPT-NeoX keep q, k and v of a head together so.

    Raises:
        ConfigError: The specification makes no sense: no parts, a name twice, a share or a number that isn't positive.
        TargetError: The layer's outputs can't be divided so.
    """
    shares, groups = _shares_and_groups(spec)
    total = sum(shares.values())
    unit, rest = divmod(base.out_features, groups * total)
    if rest or not unit:
        in_groups = f" in each of {groups} groups" if groups > 1 else ""
        raise TargetError(
            f"The {base.out_features} outputs of {type(base.layer).__name__} can't be divided into {total} equal shares"
            f"{in_groups} ({', '.join(f'{name}: {share}' for name, share in shares.items())})."
        )
    ends = [unit * end for end in itertools.accumulate(shares.values())]
    starts = [0, *ends[:-1]]
    if groups == 1:
        return {name: slice(start, end) for name, start, end in zip(shares, starts, ends, strict=True)}
    grid = torch.arange(base.out_features).reshape(groups, total * unit)
    return {name: grid[:, start:end].reshape(-1) for name, start, end in zip(shares, starts, ends, strict=True)}


def _shares_and_groups(spec: Any) -> tuple[dict[str, int], int]:
    groups: Any = 1
    if isinstance(spec, Mapping) and spec.keys() == {"parts", "groups"}:
        spec, groups = spec["parts"], spec["groups"]
    if isinstance(spec, str) or not isinstance(spec, (Mapping, Sequence)) or not spec:
        raise ConfigError(f"The parts of a fused layer must be a list of names, or names with shares, got {spec!r}.")
    shares = dict(spec) if isinstance(spec, Mapping) else _equal_shares(spec)
    for what, number in (*shares.items(), ("groups", groups)):
        if not isinstance(what, str) or not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(
                f"Parts of a fused layer need names and positive whole numbers, got {what!r}: {number!r}."
            )
    return shares, groups


def _equal_shares(names: Iterable[str]) -> dict[str, int]:
    names = list(names)
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"The parts of a fused layer must have different names; twice: {', '.join(twice)}.")
    return dict.fromkeys(names, 1)
