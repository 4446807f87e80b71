"""A plugin as one was written for peftcore 0.1, a method of each family. It stays as it is: see docs/stability.md."""

import torch
from torch import nn

from peftcore import LayerConfig, PeftMethod, hookimpl, option
from peftcore.adapters.bypass import Bypass
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.scale import OutputScale
from peftcore.adapters.selective import Selective
from peftcore.adapters.starts import uniform
from peftcore.adapters.transform import WeightTransform
from peftcore.prompts import PromptConfig, PromptEncoder
from peftcore.tuner import LayerTuner

seen = []


class DeltaConfig(LayerConfig, method="old_delta"):
    scale: float = option(1.0, "A factor.", above=0, pattern="scale_pattern")
    scale_pattern: dict[str, float] = option({}, "Factors of single layers.")


class Shared(nn.Module):
    def __init__(self, config, bases):
        super().__init__()
        self.register_buffer("old_delta_strength", torch.ones(()))


class Delta(WeightDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.old_delta_row = nn.Parameter(torch.zeros(base.in_features))
        self.scale = config.scale

    def delta_weight(self):
        return (self.old_delta_row * self.scale * self.shared.old_delta_strength).expand(self.base.weight_shape)


class DeltaTuner(LayerTuner):
    def extra_loss(self):
        return sum(parameter.square().sum() for parameter in self.parameters())

    def after_step(self, global_step):
        self.shared.old_delta_strength.fill_(1 / global_step)


class LowRankConfig(LayerConfig, method="old_low_rank"):
    r: int = option(2, "Rank.", at_least=1)


class LowRank(LowRankDelta):
    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        out_features, in_features = base.matrix_shape
        self.old_low_rank_a = nn.Parameter(uniform(*base.stack_shape, config.r, in_features, fan_in=in_features))
        self.old_low_rank_b = nn.Parameter(torch.zeros(*base.stack_shape, out_features, config.r))

    def factors(self):
        return self.old_low_rank_a, self.old_low_rank_b


class TransformConfig(LayerConfig, method="old_transform"):
    pass


class Transform(WeightTransform):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.old_transform_inputs = nn.Parameter(torch.ones(base.in_features))

    def transform(self, weight):
        return weight * self.old_transform_inputs

    def pre(self, x):
        return x * self.old_transform_inputs


class ScaleConfig(LayerConfig, method="old_scale"):
    pass


class Scale(OutputScale):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.old_scale_factors = nn.Parameter(torch.ones(base.out_features))
        self.old_scale_shift = nn.Parameter(torch.zeros(base.out_features))

    def output_factors(self):
        return self.old_scale_factors

    def shift(self):
        return self.old_scale_shift


class SelectiveConfig(LayerConfig, method="old_selective"):
    pass


class FirstRow(Selective):
    def __init__(self, base, config, shared=None):
        super().__init__(base)
        self.old_selective_row = nn.Parameter(base.weight().detach()[:1].clone())

    def acts_by_weight(self, before):
        return True

    def fold(self, weight, bias):
        return torch.cat([self.old_selective_row.to(weight.dtype), weight[1:]]), bias


class BypassConfig(LayerConfig, method="old_bypass"):
    pass


class Curve(Bypass):
    commutes = True
    unmergeable_because = "it is not linear"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.old_bypass_up = nn.Parameter(torch.zeros(base.out_features, base.in_features))

    def change(self, x, output):
        return torch.tanh(x) @ self.old_bypass_up.T


class PromptsConfig(PromptConfig, method="old_prompt"):
    pass


class Prompts(PromptEncoder):
    def __init__(self, config, sizes, model):
        super().__init__(config, sizes, model)
        self.prompt_embeddings = nn.Parameter(torch.randn(config.num_virtual_tokens, sizes.token_dim))

    def embeddings(self, batch):
        return self.prompt_embeddings


@hookimpl
def register_peft_method():
    layers = [
        ("old_low_rank", LowRankConfig, LowRank),
        ("old_transform", TransformConfig, Transform),
        ("old_scale", ScaleConfig, Scale),
        ("old_selective", SelectiveConfig, FirstRow),
        ("old_bypass", BypassConfig, Curve),
    ]
    return [
        PeftMethod(
            name="old_delta",
            config_cls=DeltaConfig,
            adapter_cls=Delta,
            tuner_cls=DeltaTuner,
            shared_cls=Shared,
            prefix="old_delta_",
            default_targets={"old": ["0"]},
        ),
        *(PeftMethod(name=name, config_cls=config, adapter_cls=adapter) for name, config, adapter in layers),
        PeftMethod(name="old_prompt", config_cls=PromptsConfig, encoder_cls=Prompts, paper="2104.08691"),
    ]


@hookimpl
def adapt_base_layer(layer):
    seen.append("adapt_base_layer")


@hookimpl
def default_target_modules(method, model_type):
    seen.append("default_target_modules")


@hookimpl
def convert_checkpoint(method, state, config, source):
    seen.append("convert_checkpoint")


@hookimpl
def register_commands(cli):
    seen.append("register_commands")
