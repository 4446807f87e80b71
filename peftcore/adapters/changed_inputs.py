"""y = W·(x + P·x) + b: a frozen linear layer together with a Δ = W · P, in one product by W."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.formed_deltas import FINE
from peftcore.adapters.thin_products import autocast_dtype
from peftcore.base_layers.base import BaseLayer


def run_with_changed_input(base: BaseLayer, delta: WeightDelta, x: Any) -> Tensor | None:
    """Run a frozen linear layer together with a delta on it, by another input; None if that is no way.

    Args:
        base: The layer's view.
        delta: What acts on it.
        x: The layer's input, ``[..., in]``.
    """
    # A coarser input would lose what Δ adds in its last places; and a weight in which others are merged is not the
    # frozen one, of which Δ is made.
    if not isinstance(x, Tensor) or x.dtype not in FINE or x.dtype != delta.dtype or base.kept is not None:
        return None
    if base.plain_matrix() is None or autocast_dtype(x.device) is not None:
        return None
    changed = delta.changed_input(x)
    return None if changed is None else base.forward(changed)
