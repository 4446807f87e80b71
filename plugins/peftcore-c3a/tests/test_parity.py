"""The same adapter in HF PEFT: files travel both ways, outputs are equal, starts have one distribution."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import peftcore
from peftcore_c3a import C3AConfig

torch.set_num_threads(1)


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 4))
        self.x = torch.randn(4, 5, 8)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, **sizes))
        self.x = torch.arange(12).reshape(2, 6)

    def forward(self, x):
        return self.inner(x).logits


MODELS = {"mlp": (Mlp, ["0", "2", "4"]), "llama": (Llama, ["q_proj", "v_proj", "down_proj"])}
OPTIONS = {
    "default": {},
    "zero": {"init_weights": True, "block_size": 4},
    "patterns": {"block_size_pattern": {"2": 1, "v_proj": 1, "0": 4, "q_proj": 4}},
    "biases": {"bias": "c3a_only"},
}
CASES = [(model, options) for model in MODELS for options in OPTIONS]


def adapted(library, name, options=None):
    """Return the model as a library adapts it, the adapter's parameters away from where they started."""
    model, targets = build(name)
    config = (C3AConfig if library is peftcore else peft.C3AConfig)(
        target_modules=targets, **{"block_size": 2, **OPTIONS[options]}
    )
    model = library.get_peft_model(model, config).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 2)
    return model


def build(name):
    torch.manual_seed(0)
    make, targets = MODELS[name]
    return make().eval(), targets


@torch.no_grad()
def same_everywhere(one, other, x):
    """Check that outputs are equal, before and after merging, and not the frozen model's."""
    expected = one(x)
    with one.disable_adapter():
        assert (expected - one(x)).abs().max() > 0.01
    equal(other(x), expected)
    for model in (one, other):
        model.merge_adapter()
        equal(model(x), expected)


def equal(actual, expected):
    """Check that outputs are equal to 1e-5 of the largest number in them."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_hf_peft_reads_what_is_written_here(name, options, tmp_path):
    ours = adapted(peftcore, name, options)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.PeftModel.from_pretrained(build(name)[0], tmp_path).eval()
    same_everywhere(ours, theirs, build(name)[0].x)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_hf_peft_writes_is_read_here(name, options, tmp_path):
    theirs = adapted(peft, name, options)
    theirs.save_pretrained(tmp_path)
    ours = peftcore.PeftModel.from_pretrained(build(name)[0], tmp_path).eval()
    same_everywhere(theirs, ours, build(name)[0].x)


@pytest.mark.parametrize("init", [True, False, "gaussian", "kaiming_uniform", "xavier_uniform"])
def test_both_start_from_one_distribution(init):
    kernels = []
    for library, config_cls in ((peftcore, C3AConfig), (peft, peft.C3AConfig)):
        config = config_cls(block_size=20, target_modules=["0"], init_weights=init)
        state = library.get_peft_model_state_dict(library.get_peft_model(nn.Sequential(nn.Linear(300, 200)), config))
        kernels += state.values()
    ours, theirs = kernels
    assert ours.shape == theirs.shape
    marks = torch.linspace(0.01, 0.99, 11)
    expected = theirs.flatten().quantile(marks)
    torch.testing.assert_close(ours.flatten().quantile(marks), expected, atol=0.1 * expected[-1].item(), rtol=0)


@torch.no_grad()
def test_two_active_adapters_add_up_as_hf_peft_merges_them_and_not_as_it_runs_them(tmp_path):
    """There the second adapter is given an input that the first has changed; merged, both act on the layer's own."""
    theirs = adapted(peft, "mlp", "default")
    theirs.add_adapter("other", peft.C3AConfig(block_size=4, target_modules=["0", "2"], init_weights="gaussian"))
    theirs.base_model.set_adapter(["default", "other"])
    theirs.save_pretrained(tmp_path)
    model, _ = build("mlp")
    ours = peftcore.PeftModel.from_pretrained(model, tmp_path).eval()
    ours.load_adapter(tmp_path / "other", "other")
    ours.set_adapter(["default", "other"])
    together, wrong = ours(model.x), theirs(model.x)
    theirs.merge_adapter()
    equal(together, theirs(model.x))
    assert (together - wrong).abs().max() > 0.01
    ours.merge_adapter()
    equal(ours(model.x), together)
