"""How factors start, compared with HF PEFT's by their statistics."""

import peft
import pytest
import torch
from torch import nn

from peftcore.base_layers import ParameterLayer, adapt
from peftcore_lora import LoraAdapter, LoraConfig

RANK = 16


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 100, 160))

    def forward(self, x):
        return x


LAYERS = {
    "linear": lambda: nn.Linear(200, 300),
    "conv1d": lambda: nn.Conv1d(64, 96, 3),
    "conv2d": lambda: nn.Conv2d(64, 96, (3, 5)),
    "embedding": lambda: nn.Embedding(500, 120),
    "attention": lambda: nn.MultiheadAttention(128, 4),
    "parameter": Experts,
}
STARTS = [
    (kind, init)
    for kind in LAYERS
    for init in (True, False, "gaussian", "orthogonal")
    if init != "orthogonal" or kind in ("linear", "embedding")
]


def ours(kind, **options):
    layer = LAYERS[kind]()
    base = ParameterLayer(layer, "weight") if kind == "parameter" else adapt(layer)
    return LoraAdapter(base, LoraConfig(r=RANK, **options)).state_dict()


def theirs(kind, **options):
    targets = {"target_parameters": ["layer.weight"]} if kind == "parameter" else {"target_modules": ["layer"]}
    model = nn.ModuleDict({"layer": LAYERS[kind]()})
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, **targets, **options))
    state = peft.get_peft_model_state_dict(adapted)
    start = "base_model.model.layer."
    return {key.removeprefix(start): tensor for key, tensor in state.items() if "out_proj" not in key}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_names_shapes_and_distributions_are_those_of_hf_peft(kind, init):
    torch.manual_seed(0)
    mine, other = ours(kind, init_lora_weights=init), theirs(kind, init_lora_weights=init)
    assert {key: tensor.shape for key, tensor in mine.items()} == {key: tensor.shape for key, tensor in other.items()}
    for key in mine:
        torch.testing.assert_close(mine[key].std(), other[key].std(), rtol=0.1, atol=0)
        assert mine[key].mean().abs() <= 0.1 * mine[key].std()
        # Uniform and normal numbers of one spread differ in how far they reach; the reach of normal ones varies.
        torch.testing.assert_close(mine[key].abs().max(), other[key].abs().max(), rtol=0.35, atol=0)


@pytest.mark.parametrize("init", [True, False])
def test_the_bias_starts_as_b_does(init):
    torch.manual_seed(0)
    state = ours("linear", init_lora_weights=init, lora_bias=True)
    other = theirs("linear", init_lora_weights=init, lora_bias=True)
    torch.testing.assert_close(state["lora_B.bias"].std(), other["lora_B.bias"].std(), rtol=0.15, atol=0)


def test_orthogonal_factors_share_no_dimension():
    state = ours("linear", init_lora_weights="orthogonal")
    a, b = state["lora_A.weight"], state["lora_B.weight"]
    assert torch.linalg.matrix_rank(a) == torch.linalg.matrix_rank(b) == RANK // 2
    torch.testing.assert_close(b @ a, torch.zeros(300, 200), atol=1e-5, rtol=0)


def test_balanced_factors_start_by_the_fan_in_of_their_matrix():
    torch.manual_seed(0)
    state = ours("conv2d", conv_decomposition="balanced")
    reach = (64 * 5) ** -0.5
    torch.testing.assert_close(state["lora_A.weight"].abs().max().item(), reach, rtol=0.01, atol=0)
    assert not state["lora_B.weight"].any()
