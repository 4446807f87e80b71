"""WeightDelta: W' = W + Δ, the family of methods that add something to a weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter, Below
from peftcore.adapters.dropout import input_dropout
from peftcore.base_layers.base import BaseLayer
from peftcore.config import PeftConfig
from peftcore.options import INPUT_DROPOUT, option_with_role

#: Every kind whose weight a matrix can be added to.
MATRIX_KINDS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "embedding", "attention", "parameter"})


class ThinFactors(NamedTuple):
    """Δ = scaling · B · A on a layer that multiplies by a matrix.

    Attributes:
        a: A ``[r, in]``.
        b: B ``[out, r]``.
        scaling: What their product is multiplied by.
    """

    a: Tensor
    b: Tensor
    scaling: float = 1.0


class WeightDelta(Adapter):
    """An additive change of the weight.

    The author writes :meth:`delta_weight`, and :meth:`delta_forward` where there is a cheaper way than the full matrix.
    If the config has an :func:`~peftcore.options.input_dropout_option`, training drops entries of the input.

    Raises:
        ConfigError: The config asks for dropout on a layer whose weight is used as a whole.
    """

    commutes = True

    def __init__(self, base: BaseLayer, config: PeftConfig, shared: Any = None) -> None:
        super().__init__(base, config, shared)
        field = option_with_role(type(config), INPUT_DROPOUT)  # type: ignore[arg-type]  # a class has a hash
        if field is not None and getattr(config, field) > 0 and base.kind != "embedding":
            self._modules["input_dropout"] = input_dropout(base, config, field)

    @property
    def changes_bias(self) -> bool:  # type: ignore[override]
        """Whether there is a δ of the bias."""
        return self.delta_bias() is not None

    @property
    def subtractable(self) -> bool:
        """Whether a merged Δ can be computed again and subtracted, so that no copy of the frozen weight is kept."""
        return not self.depends_on_weight and self.delta_bias() is None

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """Return Δ, shaped as ``base.weight_shape`` or as ``base.matrix_shape``, in the adapter's dtype."""

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return the output's change for an input: the layer's operation with Δ as its weight.

        Must not change its input, and must equal ``base.apply(Δ, entering(x))`` plus :meth:`delta_bias`.

        Args:
            x: The layer's input, cast to the adapter's dtype if it is floating point.
        """
        output = self.base.apply(self.canonical_delta(), self.entering(x))
        bias = self.delta_bias()
        return output if bias is None else self.base.add_bias(output, bias)

    def delta_beside(self, frozen: Tensor, x: Tensor) -> Tensor:
        """Return what :meth:`delta_forward` does, told what the layer itself makes of the same input.

        To be overridden where Δ has a product with the frozen weight in it, which then need not be formed.

        Args:
            frozen: The layer's output, in its dtype, with the effect of what is merged. Must stay as it is.
            x: As :meth:`delta_forward` takes it.
        """
        return self.delta_forward(x)

    def entering(self, x: Tensor) -> Tensor:
        """Return a layer's input as Δ sees it: itself, unless training drops out some of it."""
        dropout = self._modules.get("input_dropout")
        return x if dropout is None else dropout(x)

    def thin_factors(self) -> ThinFactors | None:
        """Return the factors of which Δ is the product, if that is all it is and the layer multiplies by a matrix.

        The core then computes :meth:`delta_forward` from them in fewer steps, together with the frozen layer or with
        the adapters of other rows. None says that :meth:`delta_forward` is to be called.
        """
        return None

    def thin_places(self) -> Sequence[tuple[Mapping[str, Any], str]]:
        """Return everything that :meth:`thin_factors` reads, as mappings and keys; nothing where that can't be said.

        While the same objects stand there, and nothing was written to the tensors among them, the core need not ask
        again.
        """
        return ()

    def acts_whole(self) -> bool:
        """Whether :meth:`delta_forward` would now form Δ, let it act on what is :meth:`entering` and add the bias.

        The core then adds Δ to the weight for a call instead, where that is the cheaper way.
        """
        return type(self).delta_forward is WeightDelta.delta_forward

    def changed_input(self, x: Tensor) -> Tensor | None:
        """Return what the frozen weight takes to what W + Δ makes of the input: x + P · x, where Δ is W · P.

        The core then runs the frozen layer with it, once, instead of :meth:`delta_forward`. None says that there is no
        such thing, or no cheaper one.

        Args:
            x: The layer's input, in the adapter's dtype.
        """
        return None

    def delta_bias(self) -> Tensor | None:
        """Return the change of the bias, ``[out]``, or None."""
        return None

    def canonical_delta(self) -> Tensor:
        """Return Δ in the shape of the canonical weight."""
        return self.delta_weight().reshape(self.base.weight_shape)

    def tied(self, base: BaseLayer, config: Any) -> WeightDelta:
        """Return this adapter as it acts on another layer that stores the same weight; here, by forming Δ."""
        return TiedDelta(base, self)

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output below plus Δ's effect on the same input."""
        return below(x, *args, **kwargs) + self.delta_forward(self.cast(x))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W + Δ and b + δ; a bias appears where there was none if δ does."""
        delta_bias = self.delta_bias()
        if delta_bias is not None:
            bias = delta_bias if bias is None else bias + delta_bias
        return weight + self.canonical_delta(), bias


class TiedDelta(WeightDelta):
    """Repeats another adapter's Δ, transposed where an embedding's weight is a linear layer's.

    It holds nothing of its own, and files hold nothing of it.

    Args:
        base: The second layer.
        source: The first layer's adapter.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS
    repeats_another = True

    def __init__(self, base: BaseLayer, source: WeightDelta) -> None:
        nn.Module.__init__(self)
        self.base = base
        # Kept out of the module tree: the source stands there already.
        self.__dict__["source"] = source

    source: WeightDelta

    def delta_weight(self) -> Tensor:
        """Return the source's Δ, as this layer sees it."""
        delta = self.source.canonical_delta()
        return delta if (self.base.kind == "embedding") == (self.source.base.kind == "embedding") else delta.mT

    @property
    def dtype(self) -> torch.dtype:
        """The source's dtype."""
        return self.source.dtype
