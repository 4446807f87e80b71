"""The same adapter in HF PEFT: files travel both ways, outputs are equal."""

import copy
import re
import warnings

import peft
import pytest
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import peftcore
from peftcore.exceptions import CompositionError
from peftcore.targets import ModuleMatcher
from peftcore_ln_tuning import LNTuningConfig
from peftcore_ln_tuning.default_targets import TARGETS

torch.set_num_threads(1)


class Normed(nn.Module):
    """Norms of several sorts, and layers that are none."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.batch = nn.BatchNorm1d(5)
        self.lin = nn.Linear(8, 6, bias=False)
        self.group = nn.GroupNorm(1, 5)
        self.projector = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7))

    def forward(self, ids):
        return self.projector(self.group(self.lin(self.batch(self.rms(self.norm(self.embed(ids)))))))


class Transformer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, ids):
        return self.inner(ids).logits


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Transformer(LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)))


def gpt2():
    return Transformer(GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2)))


CASES = {
    "norms": (Normed, {"target_modules": ["norm", "rms", "batch", "group"]}),
    "others": (Normed, {"target_modules": ["embed", "lin"], "modules_to_save": ["norm"]}),
    "excluded": (Normed, {"target_modules": ["norm", "rms"], "exclude_modules": ["rms"]}),
    "llama": (llama, {}),
    "gpt2": (gpt2, {}),
    "expression": (llama, {"target_modules": r".*layers\.1\..*layernorm"}),
}
IDS = torch.arange(20).reshape(4, 5) % 11


def build(case):
    torch.manual_seed(0)
    model = CASES[case][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def adapted(library, case):
    """Return the model as a library adapts it, the adapter's parameters away from where they started."""
    config = (LNTuningConfig if library is peftcore else peft.LNTuningConfig)(**CASES[case][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF PEFT warns of every norm
        model = library.get_peft_model(build(case), config)
    stir(model)
    return model


def stir(model):
    """Move what trains, and what a copy of a batch norm has counted."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.5)
    if any("batch" in name for name, parameter in model.named_parameters() if parameter.requires_grad):
        model.train()(IDS)
    model.eval()


@torch.no_grad()
def same_everywhere(one, other):
    """Check that outputs are equal, before and after merging, and not the frozen model's."""
    expected = one(IDS)
    with one.disable_adapter():
        assert (expected - one(IDS)).abs().max() > 0.01
    equal(other(IDS), expected)
    for model in (one, other):
        model.merge_adapter()
        equal(model(IDS), expected)
        equal(model.merge_and_unload()(IDS), expected)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


def hf_load(case, directory):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        warnings.filterwarnings("error", message="Unexpected keyword")
        return peft.PeftModel.from_pretrained(build(case), directory).eval()


@pytest.mark.parametrize("case", CASES)
def test_hf_peft_reads_what_is_written_here(case, tmp_path):
    ours = adapted(peftcore, case)
    ours.save_pretrained(tmp_path)
    same_everywhere(ours, hf_load(case, tmp_path))


@pytest.mark.parametrize("case", CASES)
def test_what_hf_peft_writes_is_read_here(case, tmp_path):
    theirs = adapted(peft, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    same_everywhere(theirs, peftcore.PeftModel.from_pretrained(build(case), tmp_path))


@pytest.mark.parametrize("case", CASES)
def test_the_files_hold_the_same(case, tmp_path):
    states = []
    for library in (peftcore, peft):
        adapted(library, case).save_pretrained(tmp_path / library.__name__)
        states.append(load_file(tmp_path / library.__name__ / "adapter_model.safetensors"))
    ours, theirs = states
    # HF PEFT writes frozen embeddings along.
    theirs = {name: value for name, value in theirs.items() if not name.endswith("base_layer.weight")}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        equal(ours[name], value)


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_container_in_a_file_of_hf_peft_s(name, tmp_path):
    """HF PEFT leaves the adapter's name in the names of what is inside a container, and reads no other name."""
    theirs = peft.get_peft_model(build("norms"), peft.LNTuningConfig(target_modules=["projector"]), name)
    stir(theirs)
    theirs.save_pretrained(tmp_path)
    directory = tmp_path if name == "default" else tmp_path / name
    assert f"base_model.model.projector.ln_tuning_layers.{name}.0.weight" in load_file(
        directory / "adapter_model.safetensors"
    )
    ours = peftcore.PeftModel.from_pretrained(build("norms"), directory)
    equal(ours(IDS), theirs(IDS))
    state = {key: value + 1 for key, value in peft.get_peft_model_state_dict(theirs, adapter_name=name).items()}
    peftcore.set_peft_model_state_dict(ours, state)
    peft.set_peft_model_state_dict(theirs, state, name)
    equal(ours(IDS), theirs(IDS))


def test_hf_peft_reads_a_container(tmp_path):
    config = LNTuningConfig(target_modules=["projector"])
    ours = peftcore.get_peft_model(build("norms"), config, "default")
    stir(ours)
    ours.save_pretrained(tmp_path)
    equal(hf_load("norms", tmp_path)(IDS), ours(IDS))
    equal(peftcore.PeftModel.from_pretrained(build("norms"), tmp_path)(IDS), ours(IDS))


def test_both_start_as_the_frozen_model():
    for library, config_cls in ((peftcore, LNTuningConfig), (peft, peft.LNTuningConfig)):
        model = library.get_peft_model(build("norms"), config_cls(target_modules=["norm", "rms"])).eval()
        assert torch.equal(model(IDS), build("norms")(IDS))


def test_the_config_has_hf_peft_s_fields_and_defaults():
    ours, theirs = LNTuningConfig(), peft.LNTuningConfig()
    expected = {**theirs.__dict__, "peft_version": None}
    assert {name: getattr(ours, name) for name in expected} == expected
    assert set(ours.to_dict()) <= set(theirs.to_dict())


PARENTS = ("model.layers.0", "transformer.h.1.attn", "encoder.block.0.layer.1", "language_model", "", "vision.encoder")


@pytest.mark.parametrize("model_type", TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING)
def test_default_targets_mean_what_hf_peft_s_mean(model_type):
    theirs = TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING[model_type]
    every = {name for names in TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING.values() for name in names}
    paths = [f"{parent}.{name}".lstrip(".") for parent in PARENTS for name in (*every, "query", "lm_head")]
    matcher = ModuleMatcher(TARGETS[model_type])
    expected = {path for path in paths if re.sub(r".*\.", "", path) in theirs}
    assert expected
    assert {path for path in paths if matcher.match(nn.Identity(), path)} == expected


def test_one_at_a_time_in_both():
    """Which of two copies of one layer acts is defined in neither library."""
    for library, config_cls in ((peftcore, LNTuningConfig), (peft, peft.LNTuningConfig)):
        model = library.get_peft_model(build("norms"), config_cls(target_modules=["norm"]))
        model.add_adapter("other", config_cls(target_modules=["norm"]))
        before = copy.deepcopy(model)(IDS)
        with pytest.raises((ValueError, CompositionError)):
            (model if library is peftcore else model.base_model).set_adapter(["default", "other"])
            model(IDS)
        if library is peftcore:
            equal(model(IDS), before)
