"""OSF here and in HF PEFT."""

import pytest
import torch
from torch import nn

from peftcore.exceptions import ConfigError
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    "default": {},
    "number": {"effective_rank": 3},
    "share": {"effective_rank": 0.3},
    "patterns": {"effective_rank": 2, "rank_pattern": {"2": 5, "4": 0.25}},
    "random": {"init_weights": False},
    "no effect": {"target_svd_config": {"0.weight": 1}, "effective_rank": 3},
}


class TestParity(ParityTests):
    method = "osf"
    cases = {
        **{name: ParityCase(mlp, X, {"target_modules": ["0", "2", "4"], **o}) for name, o in OPTIONS.items()},
        "llama, its layers unsaid": ParityCase(llama, IDS, {"effective_rank": 0.6}, model_scale=0.1),
    }
    starts = {
        name: ParityCase(
            lambda: nn.Sequential(nn.Linear(90, 100)),
            options={"effective_rank": 20, "target_modules": ["0"], **options},
        )
        for name, options in {"own directions": {}, "random": {"init_weights": False}}.items()
    }


def test_a_file_in_which_a_layer_has_nothing_to_train_is_loaded_for_inference(tmp_path):
    """HF PEFT freezes all directions of a layer that has no more than asked for; to train there is an error here."""
    libraries = Libraries("osf", ParityCase(mlp, X, {"effective_rank": 4, "target_modules": ["0", "4"]}))
    theirs, answer = libraries.theirs(), libraries.case.answer
    theirs.save_pretrained(tmp_path)
    ours = libraries.load_here(tmp_path)
    torch.testing.assert_close(answer(ours), answer(theirs))
    torch.testing.assert_close(answer(ours.merge_and_unload()), answer(theirs))
    with pytest.raises(ConfigError, match="freezes 4 of the 4 singular directions"):
        libraries.load_here(tmp_path, is_trainable=True)
