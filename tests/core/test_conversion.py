"""Conversion on every kind of layer, without the command."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, set_peft_model_state_dict
from peftcore.conversion import check_takes_factors, convert, needs_weights
from peftcore.exceptions import ConfigError, NotMergeableError
from peftcore.registry import registry

LORA = registry["lora"].config_cls


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x):
        return torch.einsum("bi,eoi->beo", x, self.up)


KINDS = {
    "linear": (lambda: nn.Linear(5, 7), lambda: torch.randn(2, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), lambda: torch.randn(2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), lambda: torch.randn(2, 4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: torch.randn(2, 4, 8, 8)),
    "embedding": (lambda: nn.Embedding(11, 6), lambda: torch.arange(8).reshape(2, 4)),
    "experts": (Experts, lambda: torch.randn(2, 5)),
}


def adapted(layer, method, **fields):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": layer()})
    model.forward = lambda x: model["layer"](x)
    experts = isinstance(model["layer"], Experts)
    places = {"target_parameters": ["layer.up"]} if experts else {"target_modules": ["layer"]}
    held = get_peft_model(model, registry[method].config_cls(**places, **fields))
    for parameter in held.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return held


def loaded(layer, conversion):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": layer()})
    model.forward = lambda x: model["layer"](x)
    held = get_peft_model(model, conversion.config)
    set_peft_model_state_dict(held, conversion.state)
    return held


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "lokr", "hra"])
def test_at_full_rank_the_effect_is_the_same_on_every_kind(kind, method):
    layer, example = KINDS[kind]
    x = example()
    held = adapted(layer, method, r=2)
    conversion = convert(held, "default", "lora", 36)
    torch.testing.assert_close(loaded(layer, conversion)(x), held(x), rtol=1e-4, atol=1e-4)
    assert conversion.error < 1e-5


def test_the_model_is_as_before():
    held = adapted(KINDS["linear"][0], "lora", r=4)
    before = {name: tensor.clone() for name, tensor in held.state_dict().items()}
    convert(held, "default", "lora", 2)
    after = held.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert held.active_adapters == ["default"] and list(held.peft_config) == ["default"]


def test_a_failure_leaves_the_model_as_before():
    held = adapted(KINDS["grouped"][0], "lora", r=2)
    with pytest.raises(ConfigError, match="groups"):
        convert(held, "default", "lora", 3)
    assert list(held.peft_config) == ["default"]


def test_the_error_of_all_layers_weighs_each_by_its_norm():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    held = get_peft_model(model, LORA(r=6, target_modules=["0", "1"]))
    for parameter in held.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    whole = [
        layer.base_layer.weight + layer.adapters["default"].canonical_delta() for layer in held.base_model.layers()
    ]
    deltas = [w - layer.base_layer.weight for w, layer in zip(whole, held.base_model.layers(), strict=True)]
    conversion = convert(held, "default", "lora", 3)
    lost = sum(torch.linalg.svdvals(delta)[3:].square().sum() for delta in deltas)
    everything = sum(delta.square().sum() for delta in deltas)
    assert conversion.error == pytest.approx((lost / everything).sqrt().item(), rel=1e-4)


def test_an_adapter_that_changes_the_bias_is_refused():
    held = adapted(KINDS["linear"][0], "ia3", feedforward_modules=[])
    with pytest.raises(NotMergeableError, match="changes the bias of layer"):
        convert(held, "default", "lora", 2)
    assert list(held.peft_config) == ["default"]


def test_an_effect_of_nothing_has_no_error():
    held = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LORA(r=2, target_modules=["0"]))
    assert convert(held, "default", "lora", 2).error == 0.0


def test_who_needs_weights():
    def on_meta(method, **fields):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(8, 8))
        config = registry[method].config_cls(target_modules=["0"], **fields)
        held = PeftModel(model, None)
        tuner, _ = held.base_model.prepare("default", config)
        for placement in tuner.placements:
            placement.adapter.to_empty(device="cpu")
        return needs_weights(tuner)

    assert not on_meta("lora")
    assert on_meta("oft", oft_block_size=4)
    assert on_meta("ia3", feedforward_modules=[])


def test_a_method_that_takes_no_factors_is_refused_and_those_that_do_are_named():
    with pytest.raises(NotMergeableError, match=r"to oft: .*adapters can: lora\.$"):
        check_takes_factors("oft")
    assert check_takes_factors("LORA") is registry["lora"].adapter_cls
