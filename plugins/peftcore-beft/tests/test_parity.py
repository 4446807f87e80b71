"""BEFT here and in HF PEFT: the same weights, by file in both directions, give the same outputs."""

import warnings

import peft
import pytest
import torch
import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING
from safetensors.torch import load_file
from torch import nn

import peftcore
import peftcore_beft
from peftcore_beft import BeftConfig
from peftcore_beft.default_targets import TARGETS


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
    pytest.param("linear", {}, id="linear"),
    pytest.param("linear without bias", {"init_weights": False}, id="linear without bias, random start"),
    pytest.param("bert", {"target_modules": None}, id="bert, default targets"),
    pytest.param("bert", {"target_modules": r".*(query|value|dense)"}, id="bert, by expression"),
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
    theirs = stirred(peft.get_peft_model(build(name), peft.BeftConfig(**options)))
    ours = stirred(peftcore.get_peft_model(build(name), BeftConfig(**options)))
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
            # HF PEFT can't merge into a layer without a bias; here the layer gets one.
            if name != "linear without bias" or isinstance(model, peftcore.PeftModel):
                assert_equal(answer(model.merge_and_unload(), x), expected)


@pytest.mark.parametrize("init", [True, False])
def test_both_start_alike(init):
    for seed in range(3):
        starts = []
        for get, config in ((peftcore.get_peft_model, BeftConfig), (peft.get_peft_model, peft.BeftConfig)):
            layers = nn.Sequential(nn.Linear(2, 3000))
            torch.manual_seed(seed)
            model = get(layers, config(target_modules=["0"], init_weights=init))
            starts += [p.detach().flatten().sort().values for p in model.parameters() if p.requires_grad]
        ours, theirs = starts
        # Sorted, two samples of 3000 from one normal distribution lie this close, but for their ends.
        torch.testing.assert_close(ours[150:-150], theirs[150:-150], atol=0.2, rtol=0)
        assert bool(ours.std() == 0) is init


def test_default_targets_are_hf_peft_s():
    assert TARGETS == TRANSFORMERS_MODELS_TO_BEFT_TARGET_MODULES_MAPPING
    assert peftcore_beft.default_target_modules("beft", "bert") == TARGETS["bert"]
    assert peftcore_beft.default_target_modules("beft", "custom") is None
    assert peftcore_beft.default_target_modules("road", "bert") is None
