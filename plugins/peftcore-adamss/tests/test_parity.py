"""AdaMSS here and in HF PEFT."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model_state_dict
from peftcore.exceptions import ConfigError
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, llama, mlp
from peftcore.testing.parity import their_state

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
TARGETS = {"target_modules": ["0", "2"]}
OPTIONS = {
    "default": {},
    "ranks": {"r": 5, "num_subspaces": 3, "subspace_rank": 2},
    "ranks above clusters' sizes": {"r": 7, "num_subspaces": 6, "subspace_rank": 4, "modules_to_save": ["4"]},
    "dynamic ranks": {"r": 6, "num_subspaces": 2, "subspace_rank": 4, "use_dynamic_rank": True, "svd_threshold": 0.5},
    "seed": {"r": 4, "num_subspaces": 3, "random_seed": 11},
    "random start, allocation": {"r": 4, "init_weights": None, "use_asa": True, "asa_target_subspaces": 3},
}


class TestParity(ParityTests):
    method = "adamss"
    cases = {
        **{name: ParityCase(mlp, X, {**TARGETS, **options}) for name, options in OPTIONS.items()},
        "many outputs": ParityCase(
            lambda: nn.Sequential(nn.Linear(8, 300)), X, {"r": 8, "num_subspaces": 9, "target_modules": ["0"]}
        ),
        "double": ParityCase(lambda: mlp().double(), X.double(), {**TARGETS, "r": 4}),
        "llama, its layers unsaid": ParityCase(llama, IDS, {"r": 6, "num_subspaces": 3}, model_scale=0.1),
        "bert": ParityCase(bert, IDS, {"r": 6, "target_modules": ["query", "dense"]}, model_scale=0.1),
    }
    starts = {
        name: ParityCase(
            lambda: nn.Sequential(nn.Linear(60, 300)),
            options={"r": 20, "num_subspaces": 2, "subspace_rank": 20, "target_modules": ["0"], **options},
        )
        for name, options in {"orthogonal": {}, "random": {"init_weights": None}}.items()
    }


def in_groups():
    """Return layers whose outputs lie in a few directions, some strong and some weak, so that none can be mistaken."""
    model = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 40, bias=False))
    for layer in model:
        out, into = layer.weight.shape
        groups = torch.randn(3, into)[torch.arange(out) % 3]
        weak = torch.randn(out, 3) * torch.tensor([0.5, 0.2, 0.1]) @ torch.randn(3, into)
        layer.weight.data.copy_(groups + weak)
    return model


#: HF PEFT rounds the basis to the layer's dtype.
TOLERANCES = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("seed", [0, 3])
def test_both_find_the_same_clusters_and_directions(dtype, seed):
    """HF PEFT finds the directions by few iterations from a random start, so they are the best but for some percent."""
    case = ParityCase(
        lambda: in_groups().to(dtype),
        options={"r": 6, "num_subspaces": 4, "subspace_rank": 2, "random_seed": seed, "target_modules": ["0", "1"]},
    )
    libraries = Libraries("adamss", case)
    ours, theirs = libraries.ours(perturbed=False), their_state(libraries.theirs(perturbed=False))
    here = get_peft_model_state_dict(ours)
    assert {name: tensor.shape for name, tensor in here.items()} == {n: tensor.shape for n, tensor in theirs.items()}
    for path in ("0", "1"):
        there = {name.removeprefix(f"base_model.model.{path}."): tensor for name, tensor in theirs.items()}
        adapter = ours.get_base_model().get_submodule(path).adapters["default"]
        torch.testing.assert_close(adapter.adamss_newB, there["adamss_newB"], rtol=0, atol=TOLERANCES[dtype])
        weight, bias = adapter.base.weight(), adapter.base.bias
        framed = (weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], 1)).to(adapter.dtype)
        left = nn.functional.normalize(framed @ adapter.adamss_newB.T, dim=0)
        owners = torch.cat([torch.full((len(b),), k) for k, b in enumerate(adapter.adamss_B)])[adapter.places]
        for k, a in enumerate(adapter.adamss_A):
            held, theirs_held = (left[owners == k] @ rows.T for rows in (a, there[f"adamss_A.{k}"]))
            assert held.norm() > theirs_held.norm() * (1 - 1e-3)
            assert theirs_held.norm() > held.norm() * 0.95


def test_a_file_of_a_layer_with_fewer_outputs_than_clusters_is_loaded_for_inference(tmp_path):
    """HF PEFT makes fewer clusters then; to train that is an error here."""
    libraries = Libraries("adamss", ParityCase(mlp, X, {"r": 3, "num_subspaces": 5, "target_modules": ["0", "4"]}))
    theirs, answer = libraries.theirs(), libraries.case.answer
    theirs.save_pretrained(tmp_path)
    ours = libraries.load_here(tmp_path)
    torch.testing.assert_close(answer(ours), answer(theirs))
    with pytest.raises(ConfigError, match="num_subspaces: 5 is above the 4 outputs"):
        libraries.load_here(tmp_path, is_trainable=True)


def trained(model, steps):
    """Train and return, by layer, which clusters still train after each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs, target = torch.randn(16, 8, generator=torch.manual_seed(3)), torch.randn(16, 4)
    left = []
    for step in range(steps):
        optimizer.zero_grad()
        (model(inputs) - target).square().mean().backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        left.append([name for name, p in model.named_parameters() if "adamss_B" in name and p.requires_grad])
    return [[name.replace(".adapters.default.adamss_B.", ".adamss_B.default.") for name in names] for names in left]


@pytest.mark.parametrize("target", [1, 3, 6])
def test_both_freeze_the_same_clusters(target):
    """HF PEFT leaves one fewer than it is asked for, so it is asked for one more."""
    options = {"r": 5, "num_subspaces": 4, "subspace_rank": 2, "use_asa": True, "target_modules": ["0", "2"]}
    schedule = {"init_warmup": 3, "final_warmup": 12, "mask_interval": 12}
    betas = {"asa_importance_beta": 0.7, "asa_uncertainty_beta": 0.4}
    here, there = (
        Libraries("adamss", ParityCase(mlp, X, {**options, **schedule, **betas, "asa_target_subspaces": asked}))
        for asked in (target, target + 1)
    )
    theirs, ours = there.theirs(), here.ours()
    with torch.no_grad():  # the same start, signs included
        by_name = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if "adamss" in name:
                kind, number = name.rsplit(".", 2)[-2:]
                path = name.partition(".adapters.")[0]
                parameter.copy_(by_name[f"{path}.{kind}.default.{number}"])
    frozen_here, frozen_there = trained(ours.train(), 20), trained(theirs.train(), 20)
    assert frozen_here == frozen_there
    assert [len(names) for names in frozen_here] == [8] * 12 + [target] * 8
