"""FusedDelta: separate deltas for the parts of one fused projection (the q, k and v of a qkv layer).

Each part is a complete adapter of the method on its own rows of the weight, so the parts have their own factors, and
the fused weight takes their deltas when they are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.rows import RowsLayer
from peftcore.exceptions import ConfigError


class FusedDelta(WeightDelta):
    """Deltas on some rows of a fused linear layer, one adapter per part.

    The parts are children under their aliases, so a file holds ``<layer>.q_proj.<the method's names>``.

    Args:
        base: The fused layer.
        rows: The rows of each part that is adapted.
        make: Makes the method's adapter for a part, from the part's alias and the view of its rows.

    Raises:
        ConfigError: The method's adapters are no deltas, so its parts can't be added up.
    """

    def __init__(
        self, base: BaseLayer, rows: Mapping[str, slice | Tensor], make: Callable[[str, BaseLayer], Adapter]
    ) -> None:
        nn.Module.__init__(self)
        self.base = base
        for alias, part_rows in rows.items():
            part = make(alias, RowsLayer(base, part_rows))
            if not isinstance(part, WeightDelta):
                raise ConfigError(
                    f"canonical_modules: {type(part).__name__} is no delta, so it can't adapt {alias!r} apart from the "
                    "rest of a fused layer. Name the fused layer itself."
                )
            self.add_module(alias, part)

    def parts(self) -> Sequence[WeightDelta]:
        """Return the parts' adapters, in the fused order."""
        return list(self.children())  # type: ignore[arg-type]

    @property
    def depends_on_weight(self) -> bool:  # type: ignore[override]
        """Whether any part is computed from the frozen weight."""
        return any(part.depends_on_weight for part in self.parts())

    def delta_weight(self) -> Tensor:
        """Return the parts' deltas on their rows, and zeros on the others."""
        deltas = [(part.base.rows, part.canonical_delta()) for part in self.parts()]  # type: ignore[attr-defined]
        whole = deltas[0][1].new_zeros(self.base.weight_shape)
        return _spread(whole, 0, deltas)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return the parts' changes at their features, and zeros at the others."""
        changes = [(part.base.rows, part.delta_forward(x)) for part in self.parts()]  # type: ignore[attr-defined]
        whole = changes[0][1].new_zeros(*x.shape[:-1], self.base.out_features)
        return _spread(whole, -1, changes)

    def delta_bias(self) -> Tensor | None:
        """Return the parts' changes of the bias, or None if no part has one."""
        biases = [(part.base.rows, bias) for part in self.parts() if (bias := part.delta_bias()) is not None]  # type: ignore[attr-defined]
        return _spread(biases[0][1].new_zeros(self.base.out_features), 0, biases) if biases else None


def _spread(whole: Tensor, dim: int, pieces: Sequence[tuple[slice | Tensor, Tensor]]) -> Tensor:
    """Put pieces at their indices along one dimension."""
    everything = torch.arange(whole.shape[dim], device=whole.device)
    for rows, piece in pieces:
        whole = whole.index_copy(dim, everything[rows], piece)
    return whole
