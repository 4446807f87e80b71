"""The mathematics, where the places come from, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.registry import registry
from peftcore.testing import Snapshot
from peftcore_fourierft import FourierFTAdapter, FourierFTConfig


def make(base, **options):
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return FourierFTAdapter(base, FourierFTConfig(**{"n_frequency": 5, **options}))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 4)], ids=repr
)
def test_delta_is_a_sum_of_waves(layer):
    adapter = make(layer, scaling=30)
    out, into = adapter.base.matrix_shape
    rows, columns = torch.arange(out)[:, None] / out, torch.arange(into) / into
    expected = torch.zeros(out, into)
    for place, entry in zip(adapter.places.tolist(), adapter.fourierft_spectrum, strict=True):
        u, v = divmod(place, into)
        expected = expected + 30 / (out * into) * entry * torch.cos(2 * math.pi * (u * rows + v * columns))
    torch.testing.assert_close(adapter.canonical_delta().reshape(out, into), expected)


def test_a_whole_spectrum_trains_every_entry():
    adapter = make(nn.Linear(6, 4), n_frequency=24)
    assert sorted(adapter.places.tolist()) == list(range(24))


def test_places_come_from_the_seed_and_from_nothing_else():
    first = make(nn.Linear(6, 4)).places
    torch.manual_seed(99)
    again = FourierFTAdapter(adapt(nn.Linear(6, 4)), FourierFTConfig(n_frequency=5)).places
    assert torch.equal(first, again)
    assert torch.equal(make(nn.Linear(6, 4), n_frequency=3).places, first[:3])
    assert not torch.equal(make(nn.Linear(6, 4), random_loc_seed=1).places, first)
    assert first.unique().numel() == 5
    assert set(make(nn.Linear(6, 4)).state_dict()) == {"fourierft_spectrum"}


def test_adapters_made_in_inference_mode_leave_others_trainable():
    with torch.inference_mode():
        make(nn.Linear(7, 3))
    adapter = make(nn.Linear(7, 3))
    adapter.delta_forward(torch.randn(2, 7)).sum().backward()
    assert adapter.fourierft_spectrum.grad is not None


def test_each_stacked_expert_has_a_spectrum_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 4, 6), "weight"))
    alone = make(nn.Linear(6, 4))
    assert adapter.fourierft_spectrum.shape == (3, 5)
    for expert in range(3):
        with torch.no_grad():
            alone.fourierft_spectrum.copy_(adapter.fourierft_spectrum[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_coarser_than_the_transform_is_widened_for_it(dtype):
    adapter = make(nn.Linear(6, 4), init_weights=False)
    expected = adapter.canonical_delta()
    coarse = copy.deepcopy(adapter).to(dtype).canonical_delta()
    assert coarse.dtype == dtype
    torch.testing.assert_close(coarse.float(), expected, atol=0.3, rtol=0.02)


def test_true_starts_with_a_model_as_it_was():
    layer, x = nn.Linear(6, 4), torch.randn(2, 6)
    expected = layer(x)
    config = FourierFTConfig(n_frequency=5, init_weights=True, target_modules=["0"])
    assert torch.equal(get_peft_model(nn.Sequential(layer), config)(x), expected)


def test_more_frequencies_than_entries_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    before = Snapshot.of(model)
    options = {"n_frequency": 25, "target_modules": ["0", "1"]}
    with pytest.raises(ConfigError, match=r"FourierFTConfig\.n_frequency: 25 is above the 24 entries .*_pattern"):
        get_peft_model(model, FourierFTConfig(**options))
    before.assert_same(model, "After a config was refused", "")
    assert get_peft_model(model, FourierFTConfig(**options, n_frequency_pattern={"1": 24}))


@pytest.mark.parametrize(
    "options",
    [
        {"n_frequency": 0},
        {"n_frequency": 2.0},
        {"n_frequency_pattern": {"0": 0}},
        {"n_frequency_pattern": {"(": 1}},
        {"scaling": "150"},
        {"random_loc_seed": None},
        {"random_loc_seed": 2**64},
        {"init_weights": "zero"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"FourierFTConfig\.{next(iter(options))}: "):
        FourierFTConfig(**options)


def test_default_targets():
    assert registry.default_target_modules("fourierft", "llama") == ["q_proj", "v_proj"]
    assert registry.default_target_modules("fourierft", "gpt2") == ["mlp.c_proj"]
