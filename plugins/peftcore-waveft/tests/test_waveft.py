"""The mathematics, where the places come from, how they are shared out, and what is refused."""

import copy

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.registry import registry
from peftcore.testing import Snapshot
from peftcore_waveft import WaveFTAdapter, WaveFTConfig
from peftcore_waveft.wavelets import filtered, inverse_transform, reconstruction_filters, sum_of_waves, wavelet_names

SIZES = [(6, 8), (5, 7), (1, 9), (2, 2), (16, 3)]


def make(base, **options):
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    adapter = WaveFTAdapter(base, WaveFTConfig(**{"n_frequency": 5, **options}))
    with torch.no_grad():
        adapter.waveft_spectrum.normal_()
    return adapter


def transformed(spectrum, family, periodic=False, by_waves=False):
    filters = reconstruction_filters(family)
    if by_waves:
        places = torch.arange(spectrum.numel())
        return sum_of_waves(spectrum.flatten(), places, tuple(spectrum.shape), filters, periodic)
    return filtered(spectrum, filters, periodic)


def by_pywavelets(spectrum, family, mode):
    """PyWavelets calls horizontal what is high along a column, which stands at the upper right."""
    rows, columns = (size // 2 for size in spectrum.shape)
    bands = spectrum[:rows, :columns], (spectrum[:rows, columns:], spectrum[rows:, :columns], spectrum[rows:, columns:])
    return pywt.idwt2(bands, family, mode)


def in_the_middle(spectrum, taps):
    """What Mallat's algorithm needs for a whole matrix of the spectrum's size, and zeros around the spectrum."""
    larger = np.zeros([(size + taps - 1) // 2 * 2 for size in spectrum.shape])
    top, left = ((large - size) // 2 for large, size in zip(larger.shape, spectrum.shape, strict=True))
    larger[top : top + spectrum.shape[0], left : left + spectrum.shape[1]] = spectrum
    return larger


BOTH_WAYS = pytest.mark.parametrize("by_waves", [True, False], ids=["waves", "filters"])


@BOTH_WAYS
@pytest.mark.parametrize("family", sorted(wavelet_names()))
def test_the_transform_is_that_of_pywavelets(family, by_waves):
    torch.manual_seed(0)
    for shape in SIZES:
        spectrum = torch.randn(shape, dtype=torch.float64)
        expected = by_pywavelets(in_the_middle(spectrum.numpy(), pywt.Wavelet(family).rec_len), family, "zero")
        actual = transformed(spectrum, family, by_waves=by_waves).numpy()
        np.testing.assert_allclose(actual, expected[: shape[0], : shape[1]], rtol=0, atol=1e-9)


@BOTH_WAYS
@pytest.mark.parametrize("family", sorted(wavelet_names()))
def test_the_periodic_transform_is_that_of_pywavelets(family, by_waves):
    torch.manual_seed(0)
    for shape in [(6, 8), (2, 2), (4, 10)]:
        spectrum = torch.randn(shape, dtype=torch.float64)
        expected = by_pywavelets(spectrum.numpy(), family, "periodization")
        actual = transformed(spectrum, family, True, by_waves).numpy()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("count", [1, 5, 20, 48])
def test_few_entries_and_many_have_the_transform_of_the_same_spectrum(count, periodic):
    torch.manual_seed(0)
    places, entries = torch.randperm(48)[:count], torch.randn(3, count, dtype=torch.float64)
    spectra = torch.zeros(3, 48, dtype=torch.float64).index_copy(1, places, entries).reshape(3, 6, 8)
    filters = reconstruction_filters("db2")
    actual = inverse_transform(entries, places, (6, 8), filters, periodic=periodic)
    torch.testing.assert_close(actual, filtered(spectra, filters, periodic))


@pytest.mark.parametrize("family", ["db1", "db4", "sym5", "coif2"])
def test_periodic_waves_are_orthonormal(family):
    layer = nn.Linear(8, 6)
    adapter = make(layer, n_frequency=48, wavelet_family=family, boundary="periodization")
    changes = torch.autograd.functional.jacobian(adapter.transform, adapter.waveft_spectrum).flatten(0, 1)
    torch.testing.assert_close(changes.T @ changes, torch.eye(48), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 4)], ids=repr
)
@pytest.mark.parametrize("boundary", ["zero", "periodization"])
def test_delta_is_the_spectrum_s_inverse_transform(layer, boundary):
    adapter = make(layer, scaling=3, wavelet_family="db2", boundary=boundary)
    spectrum = torch.zeros(adapter.base.matrix_shape)
    spectrum.flatten()[adapter.places] = adapter.waveft_spectrum.detach()
    expected = 3 * transformed(spectrum, "db2", boundary == "periodization")
    torch.testing.assert_close(adapter.canonical_delta().reshape(expected.shape), expected)


def test_without_the_transform_delta_is_the_spectrum():
    adapter = make(nn.Linear(6, 4), scaling=3, use_idwt=False)
    delta = adapter.delta_weight()
    torch.testing.assert_close(delta.flatten()[adapter.places], 3 * adapter.waveft_spectrum)
    assert delta.count_nonzero() == 5


@pytest.mark.parametrize("count", [1, 20])
def test_gradients_are_those_of_the_transform(count):
    adapter = make(nn.Linear(6, 4).double(), wavelet_family="sym3", n_frequency=count).double()
    assert torch.autograd.gradcheck(adapter.transform, adapter.waveft_spectrum)


def test_places_come_from_the_seed_and_from_nothing_else():
    first = make(nn.Linear(6, 4)).places
    torch.manual_seed(99)
    again = WaveFTAdapter(adapt(nn.Linear(6, 4)), WaveFTConfig(n_frequency=5)).places
    assert torch.equal(first, again)
    assert torch.equal(make(nn.Linear(6, 4), n_frequency=3).places, first[:3])
    assert not torch.equal(make(nn.Linear(6, 4), random_loc_seed=1).places, first)
    assert first.unique().numel() == 5
    assert set(make(nn.Linear(6, 4)).state_dict()) == {"waveft_spectrum"}


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def test_each_stacked_expert_has_a_spectrum_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 4, 6), "weight"))
    alone = make(nn.Linear(6, 4))
    assert adapter.waveft_spectrum.shape == (3, 5)
    for expert in range(3):
        with torch.no_grad():
            alone.waveft_spectrum.copy_(adapter.waveft_spectrum[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_adapters_work(dtype):
    adapter = make(nn.Linear(6, 4), wavelet_family="db2")
    expected = adapter.canonical_delta()
    coarse = copy.deepcopy(adapter).to(dtype).canonical_delta()
    assert coarse.dtype == dtype
    torch.testing.assert_close(coarse.float(), expected, atol=0.3, rtol=0.02)


def test_shares_are_in_proportion_to_the_layers_sizes():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 18), nn.Linear(2, 1))
    options = {"n_frequency": 7, "proportional_parameters": True, "target_modules": ["0", "1", "2"]}
    adapted = get_peft_model(model, WaveFTConfig(**options)).get_base_model()
    counts = [len(adapted[n].adapters["default"].waveft_spectrum) for n in range(3)]
    mean = (24 + 72 + 2) / 3
    assert counts == [round(7 * 24 / mean), round(7 * 72 / mean), 1]


def test_a_new_adapter_leaves_the_model_as_it_was_unless_it_starts_at_random():
    layer, x = nn.Linear(6, 4), torch.randn(2, 6)
    expected = layer(x)
    for starts_at_zero in (True, False):
        config = WaveFTConfig(n_frequency=5, init_weights=starts_at_zero, target_modules=["0"])
        adapted = get_peft_model(nn.Sequential(copy.deepcopy(layer)), config)
        assert torch.equal(adapted(x), expected) == starts_at_zero


def test_more_entries_than_the_weight_has_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    before = Snapshot.of(model)
    options = {"n_frequency": 25, "target_modules": ["0", "1"]}
    with pytest.raises(ConfigError, match=r"WaveFTConfig\.n_frequency: 25 is above the 24 entries .*_pattern"):
        get_peft_model(model, WaveFTConfig(**options))
    before.assert_same(model, "After a config was refused", "")
    assert get_peft_model(model, WaveFTConfig(**options, n_frequency_pattern={"1": 24}))


def test_a_wavelet_that_there_is_not_is_refused_with_those_near():
    with pytest.raises(ConfigError, match=r"WaveFTConfig\.wavelet_family: .*'db39'.*db38"):
        WaveFTConfig(wavelet_family="db39")


@pytest.mark.parametrize(
    "options",
    [
        {"n_frequency": 0},
        {"n_frequency": 2.0},
        {"n_frequency_pattern": {"0": 0}},
        {"n_frequency_pattern": {"(": 1}},
        {"scaling": "25"},
        {"wavelet_family": "morl"},
        {"wavelet_family": None},
        {"boundary": "symmetric"},
        {"random_loc_seed": 2**64},
        {"init_weights": "zero"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"WaveFTConfig\.{next(iter(options))}: "):
        WaveFTConfig(**options)


def test_default_targets():
    assert registry.default_target_modules("waveft", "llama") == ["q_proj", "v_proj"]
    assert registry.default_target_modules("waveft", "gpt2") == ["mlp.c_proj"]
