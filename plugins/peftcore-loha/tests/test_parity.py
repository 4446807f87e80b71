"""The same adapter in HF PEFT: files travel both ways, outputs are equal, starts have one distribution."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import peftcore
from peftcore_loha import LoHaConfig

torch.set_num_threads(1)


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 3))
        self.x = torch.randn(4, 5, 8)


class Conv(nn.Sequential):
    """Convolutions: strided, grouped, of size 1."""

    def __init__(self, conv, dims):
        grouped = conv(8, 6, 3, padding="same", groups=2)
        super().__init__(conv(4, 8, 3, stride=2, bias=False), nn.Tanh(), grouped, nn.Tanh(), conv(6, 3, 1))
        self.x = torch.randn(4, 4, *[7] * dims)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, **sizes))
        self.x = torch.arange(12).reshape(2, 6)

    def forward(self, x):
        return self.inner(x).logits


MODELS = {
    "mlp": (Mlp, ["0", "2", "4"]),
    "conv1d": (lambda: Conv(nn.Conv1d, 1), ["0", "2", "4"]),
    "conv2d": (lambda: Conv(nn.Conv2d, 2), ["0", "2", "4"]),
    "llama": (Llama, ["q_proj", "v_proj", "down_proj"]),
}
OPTIONS = {
    "plain": {},
    "tucker": {"use_effective_conv2d": True, "alpha": 5},
    "patterns": {"rank_pattern": {"2|v_proj": 3}, "alpha_pattern": {"0|q_proj": 7}},
}
CASES = [(model, options) for model in MODELS for options in OPTIONS if (model, options) != ("llama", "tucker")]


def adapted(library, name, options=None):
    """Return the model as a library adapts it, the adapter's parameters away from where they started."""
    model, targets = build(name)
    config = (LoHaConfig if library is peftcore else peft.LoHaConfig)(
        target_modules=targets, **{"r": 2, "alpha": 3, **OPTIONS[options]}
    )
    model = library.get_peft_model(model, config).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.5)
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


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize(
    "layer", [lambda: nn.Linear(300, 200), lambda: nn.Conv2d(90, 80, 3), lambda: nn.Conv1d(90, 80, 3)]
)
@pytest.mark.parametrize("tucker", [False, True])
def test_both_start_from_one_distribution(init, layer, tucker):
    torch.manual_seed(0)  # quantiles of samples: the same ones in each run
    states = []
    for library, config_cls in ((peftcore, LoHaConfig), (peft, peft.LoHaConfig)):
        config = config_cls(r=16, target_modules=["0"], init_weights=init, use_effective_conv2d=tucker)
        model = library.get_peft_model(nn.Sequential(layer()), config)
        states.append(library.get_peft_model_state_dict(model))
    ours, theirs = states
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in theirs.items():
        # Kolmogorov and Smirnov's distance of two samples; one in ten thousand pairs of one distribution is above it.
        ours_sorted, theirs_sorted = ours[name].flatten().sort().values, value.flatten().sort().values
        marks = torch.cat([ours_sorted, theirs_sorted])
        shares = [
            torch.searchsorted(sample, marks, right=True) / len(sample) for sample in (ours_sorted, theirs_sorted)
        ]
        assert (shares[0] - shares[1]).abs().max() < 2.25 * (2 / value.numel()) ** 0.5, name
