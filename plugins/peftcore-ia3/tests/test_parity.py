"""IA3 here and in HF PEFT: the same weights, by file in both directions, give the same outputs."""

import warnings

import peft
import pytest
import torch
import transformers
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from safetensors.torch import load_file
from torch import nn

import peftcore
import peftcore_ia3
from peftcore_ia3 import IA3Config
from peftcore_ia3.default_targets import FEEDFORWARD, TARGETS


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.first, self.second = layers

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 11}
STRONG = {"initializer_range": 0.3}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **STRONG, num_key_value_heads=1))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **STRONG))


MODELS = {
    "linear": (lambda: Layers(nn.Linear(6, 8), nn.Linear(8, 4, bias=False)), lambda: torch.randn(2, 3, 6)),
    "conv2d": (
        lambda: Layers(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 2, bias=False)),
        lambda: torch.randn(2, 4, 5, 4),
    ),
    "conv2d with groups": (
        lambda: Layers(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 2, groups=6)),
        lambda: torch.randn(2, 4, 5, 4),
    ),
    "conv3d": (lambda: Layers(nn.Conv3d(2, 4, 2), nn.Conv3d(4, 4, 2, groups=2)), lambda: torch.randn(2, 2, 4, 4, 4)),
    "llama": (llama, lambda: torch.randint(11, (2, 5))),
    "gpt2": (gpt2, lambda: torch.randint(11, (2, 5))),
}
PLAIN = [name for name in MODELS if name not in ("llama", "gpt2")]
CASES = [
    *(pytest.param(name, {"feedforward_modules": ["first"]}, id=f"{name}, first is feedforward") for name in PLAIN),
    *(pytest.param(name, {"feedforward_modules": "second"}, id=f"{name}, second is feedforward") for name in PLAIN),
    pytest.param("linear", {"feedforward_modules": [], "init_ia3_weights": False}, id="linear, random start"),
    pytest.param("llama", {"target_modules": None}, id="llama, default targets"),
    pytest.param("llama", {"target_modules": ["q_proj", "down_proj"]}, id="llama, default feedforward modules"),
    pytest.param("gpt2", {"target_modules": None, "fan_in_fan_out": True}, id="gpt2, default targets"),
    pytest.param(
        "gpt2", {"target_modules": r".*\.(c_attn|c_proj)", "feedforward_modules": ["mlp.c_proj"]}, id="gpt2, list"
    ),
    pytest.param("llama", {"target_modules": r".*(v|gate)_proj", "feedforward_modules": r".*\.1\..*gate_proj"}),
]


def build(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def stirred(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return model.eval()


def answer(model, x):
    with torch.no_grad():
        output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))


def hf_load(model, directory):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(model, directory).eval()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_file_of_either_is_the_same_adapter_in_the_other(name, options, tmp_path):
    options = {"target_modules": ["first", "second"], **options}
    torch.manual_seed(2)
    x = MODELS[name][1]()
    theirs = stirred(peft.get_peft_model(build(name), peft.IA3Config(**options)))
    ours = stirred(peftcore.get_peft_model(build(name), IA3Config(**options)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    shapes = [
        {key: tensor.shape for key, tensor in load_file(tmp_path / who / "adapter_model.safetensors").items()}
        for who in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]

    for written, read in (
        (theirs, peftcore.PeftModel.from_pretrained(build(name), tmp_path / "theirs").eval()),
        (ours, hf_load(build(name), tmp_path / "ours")),
    ):
        expected = answer(written, x)
        assert (expected - answer(build(name), x)).abs().max() > 1e-2
        assert_equal(answer(read, x), expected)
        assert_equal(answer(read.merge_and_unload(), x), expected)
        assert_equal(answer(written.merge_and_unload(), x), expected)


@pytest.mark.parametrize("init", [True, False])
def test_both_start_alike(init):
    options = {"target_modules": ["first", "second"], "feedforward_modules": ["second"], "init_ia3_weights": init}
    for seed in range(3):
        starts = []
        for get, config in ((peftcore.get_peft_model, IA3Config), (peft.get_peft_model, peft.IA3Config)):
            layers = Layers(nn.Linear(2, 3000), nn.Linear(3000, 2))
            torch.manual_seed(seed)
            model = get(layers, config(**options))
            starts.append([p.detach().flatten().sort().values for p in model.parameters() if p.requires_grad])
        for ours, theirs in zip(*starts, strict=True):
            # Sorted, two samples of 3000 from one normal distribution lie this close, but for their ends.
            torch.testing.assert_close(ours[150:-150], theirs[150:-150], atol=0.2, rtol=0)
            assert bool(ours.std() == 0) is init


def test_default_targets_are_hf_peft_s():
    assert {name: {*names} for name, names in TARGETS.items()} == {
        name: {*names} for name, names in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.items()
    }
    assert FEEDFORWARD == TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    assert peftcore_ia3.default_target_modules("ia3", "bert") == TARGETS["bert"]
    assert peftcore_ia3.default_target_modules("ia3", "custom") is None
    assert peftcore_ia3.default_target_modules("road", "bert") is None
