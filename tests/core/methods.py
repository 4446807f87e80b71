"""Tiny methods, one of each sort, written as a plugin's author would write them."""

import torch
from torch import nn

from peftcore import LayerConfig, PeftMethod, option
from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta


class PlainConfig(LayerConfig, method="plain"):
    r: int = option(2, "Rank.", at_least=1, pattern="rank_pattern")
    rank_pattern: dict[str, int] = option({}, "Ranks of single layers.")
    strength: float = option(1.0, "Factor of the delta.", above=0.0, at_most=10.0)


class PlainAdapter(WeightDelta):
    """A delta of low rank: Δ = strength · B A."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        rows, columns = base.matrix_shape
        stack = (base.stack,) if base.stack > 1 else ()
        self.strength = config.strength
        self.plain_A = nn.Parameter(0.3 * torch.randn(*stack, config.r, columns))
        self.plain_B = nn.Parameter(0.3 * torch.randn(*stack, rows, config.r))

    def delta_weight(self):
        return self.strength * self.plain_B @ self.plain_A


class ScaledConfig(LayerConfig, method="scaled"):
    pass


class ScaledAdapter(WeightDelta):
    """A delta computed from the frozen weight: Δ = diag(s) W."""

    kinds = MATRIX_KINDS
    depends_on_weight = True

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scaled_s = nn.Parameter(0.5 * torch.randn(base.weight_shape[0]))

    def delta_weight(self):
        weight = self.base.weight()
        return self.scaled_s.reshape(-1, *[1] * (weight.dim() - 1)) * weight


class TurnedConfig(LayerConfig, method="turned"):
    pass


class TurnedAdapter(Adapter):
    """A transform: W' = W R."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.turned_R = nn.Parameter(
            torch.eye(base.in_features) + 0.3 * torch.randn(base.in_features, base.in_features)
        )

    def forward(self, below, x, *args, **kwargs):
        return below(self.cast(x) @ self.turned_R.T, *args, **kwargs)

    def fold(self, weight, bias):
        return weight @ self.turned_R, bias


class GatedConfig(LayerConfig, method="gated"):
    pass


class GatedAdapter(Adapter):
    """An output scaled by a gate on the input, which no weight can hold."""

    mergeable = False
    unmergeable_because = "its gate depends on the input"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.gated_v = nn.Parameter(torch.randn(base.in_features))

    def forward(self, below, x, *args, **kwargs):
        return below(x, *args, **kwargs) * (1 + torch.tanh(self.cast(x) @ self.gated_v)).unsqueeze(-1)


class ShiftedConfig(LayerConfig, method="shifted"):
    pass


class ShiftedAdapter(WeightDelta):
    """A delta of the weight and one of the bias."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.shifted_w = nn.Parameter(0.3 * torch.randn(base.matrix_shape))
        self.shifted_b = nn.Parameter(torch.randn(base.out_features))

    def delta_weight(self):
        return self.shifted_w

    def delta_bias(self):
        return self.shifted_b


class BankedConfig(LayerConfig, method="banked"):
    pass


class Bank(nn.Module):
    """One vector for the whole model."""

    def __init__(self, config, bases):
        super().__init__()
        self.banked_bank = nn.Parameter(torch.randn(max(base.out_features for base in bases)))


class BankedAdapter(WeightDelta):
    """A delta of rank one, whose left factor all layers share."""

    def __init__(self, base, config, shared):
        super().__init__(base, config, shared)
        self.__dict__["bank"] = shared
        self.banked_v = nn.Parameter(torch.randn(base.in_features))

    def delta_weight(self):
        return torch.outer(self.bank.banked_bank[: self.base.out_features], self.banked_v)


METHODS = [
    PeftMethod(name="plain", config_cls=PlainConfig, adapter_cls=PlainAdapter),
    PeftMethod(name="scaled", config_cls=ScaledConfig, adapter_cls=ScaledAdapter),
    PeftMethod(name="turned", config_cls=TurnedConfig, adapter_cls=TurnedAdapter),
    PeftMethod(name="gated", config_cls=GatedConfig, adapter_cls=GatedAdapter),
    PeftMethod(name="shifted", config_cls=ShiftedConfig, adapter_cls=ShiftedAdapter),
    PeftMethod(name="banked", config_cls=BankedConfig, adapter_cls=BankedAdapter, shared_cls=Bank),
]
