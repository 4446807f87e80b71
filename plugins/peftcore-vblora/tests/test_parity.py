"""VB-LoRA here and in HF PEFT, in both forms of files."""

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import gpt2, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    "sizes": {"r": 3, "num_vectors": 5, "target_modules": ["0", "2", "4"]},
    "top k alone": {"num_vectors": 300, "topk": 3, "target_modules": ["0"], "save_only_topk_weights": True},
    "top one alone": {"num_vectors": 9, "topk": 1, "target_modules": ["0", "2"], "save_only_topk_weights": True},
    "dropout": {"num_vectors": 5, "target_modules": ["0", "2"], "modules_to_save": ["4"], "vblora_dropout": 0.5},
}
GPT2 = {"num_vectors": 6, "vector_length": 4}


class TestParity(ParityTests):
    method = "vblora"
    cases = {
        **{name: ParityCase(mlp, X, {"vector_length": 2, **options}) for name, options in OPTIONS.items()},
        "gpt2": ParityCase(
            gpt2, IDS, {**GPT2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, model_scale=0.1
        ),
        "gpt2, its layers unsaid": ParityCase(gpt2, IDS, GPT2, model_scale=0.1),
    }
    starts = {
        "bound and deviation": ParityCase(
            lambda: nn.Sequential(nn.Linear(60, 90)),
            options={
                "num_vectors": 2000,
                "vector_length": 30,
                "target_modules": ["0"],
                "init_vector_bank_bound": 0.7,
                "init_logits_std": 0.4,
            },
        )
    }


@pytest.mark.parametrize("vectors", [255, 256, 2**15 - 1, 2**15])
def test_indices_are_as_large_as_hf_peft_s(vectors):
    options = {"vector_length": 2, "num_vectors": vectors, "r": 1, "target_modules": ["2"]}
    case = ParityCase(mlp, options={**options, "save_only_topk_weights": True})
    here, there = Libraries("vblora", case).new_states()
    assert {name: (t.shape, t.dtype) for name, t in here.items()} == {
        name: (t.shape, t.dtype) for name, t in there.items()
    }
