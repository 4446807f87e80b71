"""WaveFT here and in HF PEFT."""

from functools import partial

import pytest
import torch
from torch import nn

import peftcore
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import gpt2, llama, mlp

IDS = torch.arange(12).reshape(2, 6)
MODELS = {
    "mlp": (mlp, torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8), ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), IDS, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (gpt2, IDS, ["c_attn"]),
}
OPTIONS = {
    "plain": {"n_frequency": 20},
    "options": {"n_frequency": 12, "scaling": 10.0, "random_loc_seed": 3, "init_weights": False, "bias": "waveft_only"},
    "patterns": {"n_frequency": 20, "n_frequency_pattern": {"0": 7, "q_proj": 30}, "wavelet_family": "sym4"},
    "shares": {"n_frequency": 11, "proportional_parameters": True, "wavelet_family": "db2"},
    "no transform": {"n_frequency": 20, "use_idwt": False},
}
#: What HF PEFT has filters of, but for "coif4", which has a wrong tap there, and "coif5", which has another's length.
FAMILIES = [f"db{n}" for n in range(1, 11)] + [f"sym{n}" for n in range(2, 11)] + ["coif1", "coif2", "coif3"]


class TestParity(ParityTests):
    method = "waveft"
    cases = {
        f"{name}, {option}": ParityCase(
            build,
            x,
            {"scaling": 5.0, **options, "target_modules": targets, "fan_in_fan_out": name == "gpt2"},
            model_scale=0.1 if name == "gpt2" else 0.0,
        )
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"n_frequency": 3000, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }


@pytest.mark.parametrize("out, into", [(6, 8), (5, 7), (1, 9), (33, 70)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_wavelet_is_the_same_there(family, out, into):
    options = {"n_frequency": out * into, "wavelet_family": family, "target_modules": ["0"]}
    libraries = Libraries("waveft", ParityCase(lambda: nn.Sequential(nn.Linear(into, out)), options=options))
    theirs, ours = libraries.theirs(), libraries.ours()
    peftcore.set_peft_model_state_dict(ours, {n: p for n, p in peft_state(theirs).items()})
    here = ours.get_base_model()[0].adapters["default"].delta_weight()
    there = theirs.base_model.model[0].get_delta_weight("default")
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5 * there.abs().max().item())


def peft_state(model):
    return {"base_model.model.0.waveft_spectrum": model.base_model.model[0].waveft_spectrum["default"].detach()}
