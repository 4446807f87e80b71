"""AdaLoRA here and in HF PEFT: one file, one output, one start, and one training."""

import json

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcore.testing import Libraries, ParityCase, ParityTests, perturb
from peftcore.testing.models import llama
from peftcore.testing.parity import save

X = torch.linspace(-2, 2, 4 * 2 * 7 * 4).reshape(4, 2, 7, 4).cos()
IDS = torch.arange(20).reshape(4, 5)


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(2, 4, (3, 2), stride=2, bias=False)
        self.project = nn.Linear(24, 10)
        self.transposed = Conv1D(7, 10)

    def forward(self, x):
        return self.transposed(self.project(self.image(x).tanh().flatten(1)).tanh())


RANKS = {"init_r": 4, "target_r": 2, "total_step": 12, "tinit": 2, "tfinal": 3, "deltaT": 2}
KINDS = {**RANKS, "target_modules": ["image", "project", "transposed"]}
PROJECTIONS = {**RANKS, "target_modules": ["q_proj", "v_proj", "down_proj"]}
PATTERN = {
    "image.lora_E": [True, False, True, True],
    "project.lora_E": [False, False, True, False],
    "transposed.lora_E": [True, True, False, False],
}


class TestParity(ParityTests):
    method = "adalora"
    cases = {
        "every kind": ParityCase(Layers, X, KINDS),
        "another scaling": ParityCase(Layers, X, {**KINDS, "lora_alpha": 13, "lora_dropout": 0.5}),
        "biases": ParityCase(Layers, X, {**RANKS, "target_modules": ["project", "image"], "bias": "lora_only"}),
        "llama": ParityCase(llama, IDS, {**PROJECTIONS, "modules_to_save": ["lm_head"]}),
        "llama, default targets": ParityCase(llama, IDS, {**RANKS, "task_type": "CAUSAL_LM"}),
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={**RANKS, "init_r": 16, "target_modules": ["0"], "init_lora_weights": init},
        )
        for init in (True, False, "gaussian")
    }

    def test_ranks_that_training_has_left_travel_both_ways(self, tmp_path):
        """HF PEFT gives up ranks by a pattern only when it loads or saves, so it is no case to build an adapter by."""
        libraries = Libraries("adalora", ParityCase(Layers, X, {**KINDS, "rank_pattern": PATTERN}))
        ours = libraries.ours()
        first = save(ours, tmp_path / "ours")
        self.check_same(libraries, ours, libraries.load_there(tmp_path / "ours"))
        theirs = libraries.load_there(tmp_path / "ours")
        second = save(theirs, tmp_path / "theirs")
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert {len(tensor) for name, tensor in first.items() if name.endswith("lora_E")} == {1, 2, 3}
        self.check_same(libraries, theirs, libraries.load_here(tmp_path / "theirs"))


SCHEDULES = {
    "a middle phase": RANKS,
    "every step": {"init_r": 5, "target_r": 1, "total_step": 10, "beta1": 0.5, "beta2": 0.9},
    "odd steps": {"init_r": 3, "target_r": 2, "total_step": 11, "tinit": 1, "tfinal": 2, "deltaT": 3},
}


def train(model, steps):
    """Train as both libraries want it, and return the losses and which entries of E are zero after each step."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses, taken = [], []
    for step in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
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
    libraries = Libraries("adalora", ParityCase(llama, IDS, {**options, "orth_reg_weight": 0.1}))
    answer, suite = libraries.case.answer, TestParity()
    start = libraries.ours(perturbed=False)
    perturb(start, seed=seed)
    save(start, tmp_path / "start")
    here = libraries.load_here(tmp_path / "start", is_trainable=True)
    there = libraries.load_there(tmp_path / "start", is_trainable=True)
    (losses, taken), (their_losses, their_taken) = (train(model, schedule["total_step"] + 2) for model in (here, there))
    assert losses == pytest.approx(their_losses, rel=1e-4)
    assert taken == their_taken
    assert any(map(any, taken[-1]))
    pattern, theirs = (model.peft_config["default"].rank_pattern for model in (here, there))
    assert pattern == {name.replace(".default", ""): kept for name, kept in theirs.items()}
    torch.testing.assert_close(answer(here), answer(there), rtol=0, atol=1e-4)

    files = {name: save(model, tmp_path / name) for name, model in (("here", here), ("there", there))}
    shapes = [{name: tensor.shape for name, tensor in file.items()} for file in files.values()]
    assert shapes[0] == shapes[1]
    for name, model in (("here", here), ("there", there)):
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["rank_pattern"] == pattern
        ours, theirs = libraries.load_here(tmp_path / name), libraries.load_there(tmp_path / name)
        torch.testing.assert_close(answer(ours), answer(model), rtol=0, atol=1e-5)
        suite.check_same_output(libraries, ours, theirs)


@pytest.mark.parametrize(
    ("options", "scaling"), [({"use_rslora": True}, 8 / 2), ({"alpha_pattern": {"0": 32}}, 32 / 4)], ids=str
)
def test_what_hf_peft_takes_and_ignores_has_its_meaning_here(options, scaling):
    case = ParityCase(lambda: nn.Sequential(nn.Linear(8, 8)), X, {**RANKS, "target_modules": ["0"], **options})
    libraries = Libraries("adalora", case)
    ours, theirs = (model.base_model.model[0] for model in (libraries.ours(), libraries.theirs()))
    assert ours.scaling["default"] == pytest.approx(scaling, rel=1e-5)
    assert theirs.scaling["default"] / theirs.ranknum["default"].item() == 8 / 4
