"""RoAd here and in HF PEFT: the same weights, by file in both directions, give the same outputs."""

import functools
import warnings

import peft
import pytest
import torch
import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_ROAD_TARGET_MODULES_MAPPING
from safetensors.torch import load_file
from torch import nn

import peftcore
import peftcore_road
from peftcore_road import RoadConfig


class Layers(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(**sizes, vocab_size=11, max_position_embeddings=8, initializer_range=0.3)
    return transformers.BertForMaskedLM(config)


MODELS = {
    "linear": (Layers, lambda: torch.randn(2, 3, 6)),
    "linear without bias": (lambda: Layers(bias=False), lambda: torch.randn(2, 6)),
    "bert": (bert, lambda: torch.randint(11, (2, 5))),
}
CASES = [
    *(
        pytest.param(name, {"variant": variant, "group_size": size}, id=f"{name}, {variant}, groups of {size}")
        for variant in ("road_1", "road_2", "road_4")
        for name, size in (("linear", 4), ("linear without bias", 2))
    ),
    pytest.param("linear", {"variant": "road_4", "group_size": 4, "init_weights": False}, id="linear, random start"),
    pytest.param("bert", {"target_modules": None, "group_size": 8}, id="bert, default targets"),
    pytest.param("bert", {"target_modules": r".*(query|dense)", "group_size": 8, "variant": "road_2"}, id="bert"),
]


def build(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def stirred(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
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
    theirs = stirred(peft.get_peft_model(build(name), peft.RoadConfig(**options)))
    ours = stirred(peftcore.get_peft_model(build(name), RoadConfig(**options)))
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
        for model in (written, read):
            assert_equal(answer(model.merge_and_unload(), x), expected)


@pytest.mark.parametrize("init", [True, False])
def test_both_start_alike(init):
    for seed in range(3):
        starts = []
        for get, config in ((peftcore.get_peft_model, RoadConfig), (peft.get_peft_model, peft.RoadConfig)):
            torch.manual_seed(seed)
            model = get(nn.Sequential(nn.Linear(2, 6400)), config(target_modules=["0"], init_weights=init))
            starts.append([p.detach().flatten().sort().values for p in model.parameters() if p.requires_grad])
        for ours, theirs in zip(*starts, strict=True):
            # Sorted, two samples of 3200 from one normal distribution lie this close, but for their ends.
            torch.testing.assert_close(ours[150:-150], theirs[150:-150], atol=0.1, rtol=0)
            assert bool(ours.std() == 0) is init


def test_default_targets_are_hf_peft_s():
    theirs = dict(TRANSFORMERS_MODELS_TO_ROAD_TARGET_MODULES_MAPPING)
    usual = functools.partial(peftcore_road.default_target_modules, "road")
    # An expression there, wildcards here.
    assert theirs.pop("gemma4") == r".*language_model\..*\.(q_proj|v_proj)"
    assert usual("gemma4") == ["*language_model.*.q_proj", "*language_model.*.v_proj"]
    for model_type, targets in theirs.items():
        assert {*usual(model_type)} == {*targets}
    assert usual("custom") is None
    assert peftcore_road.default_target_modules("beft", "llama") is None
