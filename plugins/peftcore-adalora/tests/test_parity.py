"""AdaLoRA here and in HF PEFT: one file, one output, one start, and one training."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import peftcore_adalora
from peftcore import PeftModel, get_peft_model
from peftcore.targets import ModuleMatcher
from peftcore.testing import perturb
from peftcore_adalora import AdaLoraConfig


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(2, 4, (3, 2), stride=2, bias=False)
        self.project = nn.Linear(24, 10)
        self.transposed = Conv1D(7, 10)

    def forward(self, x):
        return self.transposed(self.project(self.image(x).tanh().flatten(1)).tanh())


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


INPUTS = {
    layers: torch.linspace(-2, 2, 4 * 2 * 7 * 4).reshape(4, 2, 7, 4).cos(),
    llama: torch.arange(20).reshape(4, 5) % 11,
}
RANKS = {"init_r": 4, "target_r": 2, "total_step": 12, "tinit": 2, "tfinal": 3, "deltaT": 2}
KINDS = ["image", "project", "transposed"]
CASES = {
    "every kind": (layers, {**RANKS, "target_modules": KINDS}),
    "another scaling": (layers, {**RANKS, "target_modules": KINDS, "lora_alpha": 13, "lora_dropout": 0.5}),
    "biases": (layers, {**RANKS, "target_modules": ["project", "image"], "bias": "lora_only"}),
    "llama": (llama, {**RANKS, "target_modules": ["q_proj", "v_proj", "down_proj"], "modules_to_save": ["lm_head"]}),
    "llama, default targets": (llama, {**RANKS, "task_type": "CAUSAL_LM"}),
    "what training has left": (
        layers,
        {
            **RANKS,
            "target_modules": KINDS,
            "rank_pattern": {
                "image.lora_E": [True, False, True, True],
                "project.lora_E": [False, False, True, False],
                "transposed.lora_E": [True, True, False, False],
            },
        },
    ),
}


def answer(model, build):
    with torch.no_grad():
        output = model(INPUTS[build])
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def tensors(directory):
    return load_file(directory / "adapter_model.safetensors")


def hf_load(build, directory, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(build(), directory, **options).eval()


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_ours_in_hf_peft_and_hf_peft_s_here(case, tmp_path):
    build, options = case
    ours = get_peft_model(build(), AdaLoraConfig(**options))
    perturb(ours)
    assert not torch.allclose(answer(ours, build), answer(build(), build), atol=1e-2)
    ours.save_pretrained(tmp_path)
    theirs = hf_load(build, tmp_path)
    assert_same(answer(ours, build), answer(theirs, build))

    theirs.save_pretrained(tmp_path / "theirs")
    loaded = PeftModel.from_pretrained(build(), tmp_path / "theirs")
    assert_same(answer(loaded, build), answer(theirs, build))
    loaded.save_pretrained(tmp_path / "again")
    first, written, again = (tensors(tmp_path / name) for name in (".", "theirs", "again"))
    assert first.keys() == written.keys() == again.keys()
    assert all(torch.equal(first[name], written[name]) and torch.equal(first[name], again[name]) for name in first)
    assert_same(answer(ours.merge_and_unload(), build), answer(theirs.merge_and_unload(), build))


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_the_start_has_hf_peft_s_distribution(init):
    options = {**RANKS, "init_r": 16, "target_modules": ["0"], "init_lora_weights": init}
    here = get_peft_model(nn.Sequential(nn.Linear(300, 200)), AdaLoraConfig(**options))
    there = peft.get_peft_model(nn.Sequential(nn.Linear(300, 200)), peft.AdaLoraConfig(**options))
    for name in ("lora_A", "lora_B", "lora_E"):
        (a,), (b,) = ([p for key, p in model.named_parameters() if name in key] for model in (here, there))
        assert a.shape == b.shape
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.6 if name == "lora_E" else 0.1)


SCHEDULES = {
    "a middle phase": RANKS,
    "every step": {"init_r": 5, "target_r": 1, "total_step": 10, "beta1": 0.5, "beta2": 0.9},
    "odd steps": {"init_r": 3, "target_r": 2, "total_step": 11, "tinit": 1, "tfinal": 2, "deltaT": 3},
}


def train(model, ids, steps):
    """Train as both libraries want it, and return the losses and which entries of E are zero after each step."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses, taken = [], []
    for step in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
        taken.append([p.eq(0).flatten().tolist() for name, p in model.named_parameters() if "lora_E" in name])
    model.eval()
    return losses, taken


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_training_takes_the_same_ranks_and_leads_to_the_same_adapter(schedule, seed, tmp_path):
    options = {**schedule, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    start = get_peft_model(llama(), AdaLoraConfig(**options, orth_reg_weight=0.1))
    perturb(start, seed=seed)
    start.save_pretrained(tmp_path / "start")
    here = PeftModel.from_pretrained(llama(), tmp_path / "start", is_trainable=True)
    there = hf_load(llama, tmp_path / "start", is_trainable=True)
    ids, steps = INPUTS[llama], schedule["total_step"] + 2
    (losses, taken), (their_losses, their_taken) = train(here, ids, steps), train(there, ids, steps)
    assert losses == pytest.approx(their_losses, rel=1e-4)
    assert taken == their_taken
    assert any(map(any, taken[-1]))
    pattern = here.peft_config["default"].rank_pattern
    theirs = there.peft_config["default"].rank_pattern
    assert pattern == {name.replace(".default", ""): kept for name, kept in theirs.items()}
    torch.testing.assert_close(answer(here, llama), answer(there, llama), rtol=0, atol=1e-4)

    here.save_pretrained(tmp_path / "here")
    there.save_pretrained(tmp_path / "there")
    for directory, trained in (("here", here), ("there", there)):
        assert_same(answer(PeftModel.from_pretrained(llama(), tmp_path / directory), llama), answer(trained, llama))
        assert_same(answer(hf_load(llama, tmp_path / directory), llama), answer(trained, llama))
        config = json.loads((tmp_path / directory / "adapter_config.json").read_text())
        assert config["rank_pattern"] == pattern
    shapes = [{name: t.shape for name, t in tensors(tmp_path / name).items()} for name in ("here", "there")]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("options", "scaling"), [({"use_rslora": True}, 8 / 2), ({"alpha_pattern": {"0": 32}}, 32 / 4)], ids=str
)
def test_what_hf_peft_takes_and_ignores_has_its_meaning_here(options, scaling):
    config = {**RANKS, "target_modules": ["0"], **options}
    ours = get_peft_model(nn.Sequential(nn.Linear(8, 8)), AdaLoraConfig(**config)).base_model.model[0]
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), peft.AdaLoraConfig(**config)).base_model.model[0]
    assert ours.scaling["default"] == pytest.approx(scaling, rel=1e-5)
    assert theirs.scaling["default"] / theirs.ranknum["default"].item() == 8 / 4


def test_default_targets_mean_what_hf_peft_s_mean():
    theirs = TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING
    assert theirs.keys() == peftcore_adalora.default_targets.TARGETS.keys()
    for model_type, names in theirs.items():
        ours = peftcore_adalora.default_target_modules("adalora", model_type)
        if isinstance(names, str):
            matcher = ModuleMatcher(ours)
            assert matcher.match(nn.Linear(1, 1), "model.language_model.layers.0.self_attn.q_proj")
            assert not matcher.match(nn.Linear(1, 1), "model.vision_tower.layers.0.self_attn.q_proj")
        else:
            assert sorted(ours) == sorted(names), model_type
    assert peftcore_adalora.default_target_modules("c3a", "llama") is None
