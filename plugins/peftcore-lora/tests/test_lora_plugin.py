"""The plugin as the core sees it, and adapters from training to a file and back."""

import re
import subprocess
import sys

import pytest
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

import peftcore
import peftcore_lora
from peftcore import PeftModel, get_peft_model
from peftcore.registry import registry
from peftcore.targets import ModuleMatcher
from peftcore_lora import LoraAdapter, LoraConfig


def test_the_core_finds_the_method_and_its_names():
    assert peftcore.LoraConfig is LoraConfig
    method = peftcore_lora.register_peft_method()
    assert (method.name, method.prefix, method.config_cls, method.adapter_cls) == (
        "lora",
        "lora_",
        LoraConfig,
        LoraAdapter,
    )


def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, peftcore_lora; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"transformers", "accelerate", "huggingface_hub", "rich", "typer"} & {*loaded}


PARENTS = {
    "layers.3.self_attn": "q_proj k_proj v_proj o_proj",
    "model.language_model.layers.0.self_attn": "q_proj k_proj v_proj o_proj",
    "model.vision_tower.layers.0.self_attn": "q_proj v_proj",
    "layers.0.mlp": "fc1 fc2 c_fc",
    "layers.1.attn": "r_proj c_attn c_proj query_key_value qkv_proj Wqkv",
    "layers.2.attention.self": "query key value query_proj value_proj in_proj",
    "layers.2.attention": "key value receptance output",
    "layers.2.SelfAttention": "q k v o",
}
NAMES = ["lm_head", "value", *(f"{parent}.{name}" for parent, names in PARENTS.items() for name in names.split())]


@pytest.mark.parametrize("model_type", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)
def test_default_targets_mean_what_hf_peft_s_mean(model_type):
    theirs = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type]
    expected = {
        name
        for name in NAMES
        if (re.fullmatch(theirs, name) if isinstance(theirs, str) else name.rsplit(".")[-1] in theirs)
    }
    matcher = ModuleMatcher(registry.default_target_modules("lora", model_type))
    assert expected
    assert {name for name in NAMES if matcher.match(nn.Linear(1, 1), name)} == expected


def test_other_models_have_no_default_targets_here():
    assert registry.default_target_modules("lora", "custom") is None


class Model(nn.Module):
    """One layer of each kind that is called with a tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.image = nn.Conv2d(1, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.project = nn.Linear(8, 6)
        self.head = nn.Linear(24, 3)
        self.double()

    def forward(self, ids):
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.image(self.project(x)[:, None])
        return self.head(x.mean(2).flatten(1))


TARGETS = ["embed", "conv", "image", "attention", "project", "head"]
IDS = torch.arange(20).reshape(4, 5) % 11
OPTIONS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"conv": 2, "head": 5}, "alpha_pattern": {"head": 1}},
    "balanced": {"conv_decomposition": "balanced"},
    "full": {"r": 30, "full_matrix_if_smaller": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_from_training_to_a_file_and_into_a_fresh_model(options, tmp_path):
    model = get_peft_model(Model(), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options}))
    torch.testing.assert_close(model(IDS), Model()(IDS))
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    losses = train(model)
    assert losses[-1] < losses[0] / 2
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Model(), tmp_path)
    trained = model.eval()(IDS)
    torch.testing.assert_close(loaded.eval()(IDS), trained)
    torch.testing.assert_close(loaded.merge_and_unload()(IDS), trained)


def train(model):
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_adapters_of_different_ranks_add_up():
    model = get_peft_model(Model().eval(), LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=5, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False))
    alone = model(IDS)
    model.set_adapter(["default", "other"])
    both = model(IDS)
    assert not torch.allclose(both, alone)
    model.merge_adapter()
    torch.testing.assert_close(model(IDS), both)
    model.unmerge_adapter()
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(model(IDS), alone)
