"""The same adapter in HF PEFT: files travel both ways, outputs are equal, starts have one distribution."""

import warnings

import peft
import pytest
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LILY_TARGET_MODULES_MAPPING
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import peftcore
import peftcore_lily
from peftcore.exceptions import NotMergeableError
from peftcore_lily import LilyConfig

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.v = nn.Linear(8, 4, bias=False)
        self.o = nn.Linear(4, 8)

    def forward(self, x):
        return x + self.o(torch.tanh(self.v(torch.tanh(self.q(x)))))


class Blocks(nn.Module):
    """Two lists of blocks."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([Block() for _ in range(3)])
        self.decoder = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in (*self.encoder, *self.decoder):
            x = block(x)
        return self.head(x)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes))
        self.config = self.inner.config

    def forward(self, ids):
        return self.inner(ids).logits


CASES = {
    "alone": {"target_modules": ["q", "v"]},
    "strides": {"target_modules": ["q", "v", "o"], "stride_A": 2, "num_B": 3, "scaling": 0.7},
    "one A": {"target_modules": ["q"], "stride_A": 9},
    "expression": {"target_modules": r".*\.(q|o)", "stride_A": 2},
    "paths": {"target_modules": ["encoder.0.q", "encoder.1.q", "v"], "stride_A": 3},
    "some layers": {"target_modules": ["q"], "stride_A": 2, "layers_to_transform": [1, 2], "layers_pattern": "encoder"},
    "and a head": {"target_modules": ["o"], "modules_to_save": ["head"], "exclude_modules": ["decoder.1.o"]},
    "llama": {"stride_A": 2},
}


def build(case):
    torch.manual_seed(0)
    return (Llama if case == "llama" else Blocks)().eval()


def inputs(case):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(20, (3, 6), generator=rng) if case == "llama" else torch.randn(3, 5, 8, generator=rng)


def adapted(library, case):
    """Return the model as a library adapts it, the adapter's parameters away from where they started."""
    config_cls = LilyConfig if library is peftcore else peft.LilyConfig
    model = library.get_peft_model(build(case), config_cls(**{"r": 3, **CASES[case]})).eval()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * (2 if "router" in name else 0.4))
    return model


@torch.no_grad()
def same(one, other, case):
    """Check that outputs are equal, and not the frozen model's."""
    x = inputs(case)
    expected = one(x)
    with one.disable_adapter():
        assert (expected - one(x)).abs().max() > 0.01
    for batch in (x, x[:1], x[:, :2]):  # the mean over a batch is part of it
        torch.testing.assert_close(other(batch), one(batch), rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


def groups(model):
    """Return which layers share an A, and which share a B."""
    found = {}
    for path, module in model.named_modules():
        for name in ("lily_A", "lily_B"):
            if factor := getattr(module, name, None) if "adapters" not in path else None:
                found.setdefault((name, id(factor["default"].weight)), []).append(
                    path.removeprefix("base_model.model.")
                )
    return sorted((name, paths) for (name, _), paths in found.items())


@pytest.mark.parametrize("case", CASES)
def test_the_same_layers_share(case):
    ours, theirs = adapted(peftcore, case), adapted(peft, case)
    assert groups(ours) == groups(theirs)
    assert len(groups(ours)) < 2 * sum(name == "lily_A" for name, paths in groups(ours) for _ in paths)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("case", CASES)
def test_hf_peft_reads_what_is_written_here(case, tmp_path):
    ours = adapted(peftcore, case)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")
        theirs = peft.PeftModel.from_pretrained(build(case), tmp_path).eval()
    same(ours, theirs, case)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_hf_peft_writes_is_read_here(case, low_cpu_mem_usage, tmp_path):
    theirs = adapted(peft, case)
    theirs.save_pretrained(tmp_path)
    ours = peftcore.PeftModel.from_pretrained(build(case), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    same(theirs, ours.eval(), case)
    assert groups(ours) == groups(theirs)


def test_neither_can_be_merged():
    for library, error in ((peftcore, NotMergeableError), (peft, NotImplementedError)):
        for method in ("merge_adapter", "merge_and_unload"):
            with pytest.raises(error):
                getattr(adapted(library, "alone"), method)()


def test_the_config_has_hf_peft_s_fields_and_defaults():
    ours, theirs = LilyConfig(), peft.LilyConfig()
    expected = {**theirs.__dict__, "peft_version": None}
    assert {name: getattr(ours, name) for name in expected} == expected
    assert set(ours.to_dict()) <= set(theirs.to_dict())


@pytest.mark.parametrize("model_type", TRANSFORMERS_MODELS_TO_LILY_TARGET_MODULES_MAPPING)
def test_default_targets_are_hf_peft_s(model_type):
    theirs = TRANSFORMERS_MODELS_TO_LILY_TARGET_MODULES_MAPPING[model_type]
    ours = peftcore_lily.default_target_modules("lily", model_type)
    if model_type == "gemma4":  # an expression there
        assert {name.rsplit(".", 1)[1] for name in ours} == {"q_proj", "v_proj"}
    else:
        assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("init", [True, False])
def test_both_start_from_one_distribution(init):
    states = []
    for library, config_cls in ((peftcore, LilyConfig), (peft, peft.LilyConfig)):
        config = config_cls(r=80, num_B=70, target_modules=["0"], init_weights=init)
        model = library.get_peft_model(nn.Sequential(nn.Linear(300, 200)), config)
        states.append(library.get_peft_model_state_dict(model))
    ours, theirs = states
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    marks = torch.linspace(0, 1, 11)
    for name, value in theirs.items():
        expected = value.flatten().quantile(marks)
        actual = ours[name].flatten().quantile(marks)
        torch.testing.assert_close(actual, expected, atol=0.05 * expected[-1].item(), rtol=0)
