"""PeanutAdapter: what a small network makes of a frozen weight, added to it."""

from __future__ import annotations

from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.starts import zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_peanut.activations import ACTIVATIONS
from peftcore_peanut.config import PeanutConfig


class PeanutAdapter(LowRankDelta):
    """A network of the weight on one layer, Δ = s · B · net(A · W) (arXiv 2410.01870).

    The network acts on each column of the frozen weight ``[out, in · kernel]``. With σ the activation, H₀ = σ(A · W);
    each encoder makes σ(Eᵢ · H), and each decoder σ(Dᵢ · H) plus what went into the encoder opposite.
    The parameters are ``peanut_A.weight`` ``[r, out]``, ``peanut_B.weight`` ``[out, r]``, and
    ``peanut_encoders.<i>.weight`` and ``peanut_decoders.<i>.weight`` ``[r, r]``. Stacked experts have one each,
    ``[experts, …]``.

    Raises:
        ConfigError: The rank is above both sizes of the weight.
    """

    depends_on_weight = True

    def __init__(self, base: BaseLayer, config: PeanutConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        self.scaling, self.act_fn = config.scaling, config.act_fn
        stack, out, r = base.stack_shape, base.matrix_shape[0], config.r

        def layer(rows: int, columns: int, zeros: bool = False) -> nn.ParameterDict:
            return nn.ParameterDict({"weight": zeros_or_uniform(*stack, rows, columns, zeros=zeros, fan_in=columns)})

        self.peanut_A = layer(r, out)
        self.peanut_B = layer(out, r, zeros=config.init_weights)
        self.peanut_encoders = nn.ModuleList(layer(r, r) for _ in range(config.depth))
        self.peanut_decoders = nn.ModuleList(layer(r, r) for _ in range(config.depth))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return s · net(A · W) and B."""
        a, b = self.get_parameter("peanut_A.weight"), self.get_parameter("peanut_B.weight")
        act = ACTIVATIONS[self.act_fn]
        weight = self.base.weight().to(a).reshape(*self.base.stack_shape, *self.base.matrix_shape)
        hidden, passed = act(a @ weight), []
        for encoder in self.peanut_encoders:
            passed.append(hidden)
            hidden = act(encoder.get_parameter("weight") @ hidden)
        for decoder in self.peanut_decoders:
            hidden = act(decoder.get_parameter("weight") @ hidden) + passed.pop()
        return hidden * self.scaling, b

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, depth={len(self.peanut_encoders)}, act_fn={self.act_fn}"
