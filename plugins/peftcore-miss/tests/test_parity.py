"""MiSS here and in HF PEFT."""

from functools import partial

import peft
import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.testing import ParityCase, ParityTests, perturb
from peftcore.testing.models import llama, mlp
from peftcore_miss import MissConfig

MODELS = {
    "mlp": (mlp, torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8), ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), torch.arange(12).reshape(2, 6), ["q_proj", "v_proj", "down_proj"]),
}
OPTIONS = {
    "shards": {"r": 4},
    "shards that do not divide": {"r": 3, "miss_dropout": 0.2},
    "mini": {"r": 2, "mini_r": 2, "init_weights": "mini", "bias": "MiSS_only"},
    "bat": {"r": 2, "init_weights": "bat"},
}


class TestParity(ParityTests):
    method = "miss"
    cases = {
        f"{name}, {option}": ParityCase(build, x, {"target_modules": targets, **options})
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 20, "mini_r": 4, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False, "mini", "bat")
    }


def test_two_adapters_of_different_forms_act_together():
    """There the form is the layer's and not the adapter's, so the second one's tensors are taken for the first's."""
    x = torch.linspace(-2, 2, 24).sin().reshape(4, 6)
    forms = {"default": {"r": 2}, "other": {"r": 2, "init_weights": "bat"}}
    ours, theirs = (nn.Sequential(nn.Linear(6, 4)) for _ in range(2))
    frozen = ours[0].weight.detach().clone()
    ours = get_peft_model(ours, MissConfig(target_modules=["0"], **forms["default"])).eval()
    ours.add_adapter("other", MissConfig(target_modules=["0"], **forms["other"]))
    deltas = []
    for name in forms:
        perturb(ours, name)
        deltas.append(ours.get_base_model()[0].adapters[name].canonical_delta())
    ours.set_adapter(list(forms))
    expected = nn.functional.linear(x, frozen + sum(deltas), ours.get_base_model()[0].bias)
    torch.testing.assert_close(ours(x), expected)
    theirs = peft.get_peft_model(theirs, peft.MissConfig(target_modules=["0"], **forms["default"])).eval()
    theirs.add_adapter("other", peft.MissConfig(target_modules=["0"], **forms["other"]))
    theirs.base_model.set_adapter(list(forms))
    with pytest.raises(RuntimeError):
        theirs(x)
