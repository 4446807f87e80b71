"""Lily here and in HF PEFT: the same layers share the same factors."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama
from peftcore.testing.parity import save

X = torch.arange(120.0).square().sin().reshape(3, 5, 8)
IDS = torch.arange(18).reshape(3, 6)
OPTIONS = {
    "alone": {"target_modules": ["q", "v"]},
    "strides": {"target_modules": ["q", "v", "o"], "stride_A": 2, "num_B": 3, "scaling": 0.7},
    "one A": {"target_modules": ["q"], "stride_A": 9},
    "expression": {"target_modules": r".*\.(q|o)", "stride_A": 2},
    "paths": {"target_modules": ["encoder.0.q", "encoder.1.q", "v"], "stride_A": 3},
    "some layers": {"target_modules": ["q"], "stride_A": 2, "layers_to_transform": [1, 2], "layers_pattern": "encoder"},
    "and a head": {"target_modules": ["o"], "modules_to_save": ["head"], "exclude_modules": ["decoder.1.o"]},
}


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


def groups(model):
    """Return which layers share an A, and which share a B."""
    found = {}
    for path, module in model.named_modules():
        for name in ("lily_A", "lily_B"):
            if factor := getattr(module, name, None) if "adapters" not in path else None:
                found.setdefault((name, id(factor["default"].weight)), []).append(path)
    return sorted((name, paths) for (name, _), paths in found.items())


class TestParity(ParityTests):
    method = "lily"
    repeated = ("lily_A", "lily_B")
    cases = {
        **{name: ParityCase(Blocks, X, {"r": 3, **options}) for name, options in OPTIONS.items()},
        "llama": ParityCase(lambda: llama(num_hidden_layers=3), IDS, {"r": 3, "stride_A": 2}, model_scale=0.1),
    }
    starts = {
        f"init_weights={init}": ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 20, "num_B": 10, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }

    def test_the_same_layers_share(self, libraries, tmp_path):
        ours, theirs = libraries.ours(), libraries.theirs()
        save(theirs, tmp_path)
        expected = groups(theirs)
        assert len(expected) < sum(len(paths) for _, paths in expected)
        assert groups(ours) == groups(libraries.load_here(tmp_path, low_cpu_mem_usage=True)) == expected
        assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
