"""How factors start: the same distributions, though not the same streams of random numbers."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

import peftcore
from peftcore import LoraConfig

LAYERS = {
    "linear": (lambda: nn.Linear(96, 80), "layer"),
    "linear without bias": (lambda: nn.Linear(96, 80, bias=False), "layer"),
    "conv2d": (lambda: nn.Conv2d(32, 48, 3), "layer"),
    "embedding": (lambda: nn.Embedding(400, 48), "layer"),
}


def factors(library, config_cls, layer: nn.Module, **options) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("layer", layer)
    adapted = library.get_peft_model(model, config_cls(target_modules=["layer"], r=16, **options))
    return {
        name.rpartition("layer.")[2]: value.detach()
        for name, value in library.get_peft_model_state_dict(adapted, **_plain(library)).items()
    }


def _plain(library) -> dict[str, bool]:
    return {"save_embedding_layers": False} if library is peft else {}


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Compare the quantiles, within six times their standard error for a normal distribution."""
    assert ours.shape == theirs.shape
    spread = theirs.std().item() or 1e-12
    levels = torch.linspace(0.05, 0.95, 19)
    # The standard error of a quantile of n numbers is at most 2.1 standard deviations / sqrt(n) at these levels.
    allowed = 6 * 2.1 * spread * (2 / theirs.numel()) ** 0.5
    difference = torch.quantile(ours.flatten(), levels) - torch.quantile(theirs.flatten(), levels)
    assert difference.abs().max().item() <= allowed


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_factors_start_in_the_same_distribution(layer, init):
    make, _ = LAYERS[layer]
    if init == "orthogonal" and layer == "conv2d":
        refuses(peftcore, LoraConfig, make(), init)
        return
    ours = factors(peftcore, LoraConfig, make(), init_lora_weights=init)
    theirs = factors(peft, peft.LoraConfig, make(), init_lora_weights=init)
    assert set(ours) == set(theirs)
    for name in ours:
        assert_same_distribution(ours[name], theirs[name])


def refuses(library, config_cls, layer, init):
    """What is defined for matrices only is refused for others; HF PEFT fails with an error of torch's."""
    with pytest.raises(ValueError, match="orthogonal"):
        factors(library, config_cls, layer, init_lora_weights=init)


@pytest.mark.parametrize("init", [True, False])
def test_a_bias_of_b_starts_in_the_same_distribution(init):
    ours = factors(peftcore, LoraConfig, nn.Linear(64, 2000), init_lora_weights=init, lora_bias=True)
    theirs = factors(peft, peft.LoraConfig, nn.Linear(64, 2000), init_lora_weights=init, lora_bias=True)
    assert_same_distribution(ours["lora_B.bias"], theirs["lora_B.bias"])


@pytest.mark.parametrize("seed", range(3))
def test_orthogonal_factors_use_different_directions_of_the_rank(seed):
    """B · A is zero at the start although neither factor is, in both libraries."""
    for library, config_cls in ((peftcore, LoraConfig), (peft, peft.LoraConfig)):
        found = factors(library, config_cls, nn.Linear(96, 80), init_lora_weights="orthogonal")
        a, b = found["lora_A.weight"], found["lora_B.weight"]
        assert a.abs().max() > 0.01 and b.abs().max() > 0.01
        assert (b @ a).abs().max() < 1e-5
