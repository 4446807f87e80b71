"""SpectralDelta: a few entries of a spectrum train, at places that a seed gives; a method writes the transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import option
from peftcore.adapters.spectral import SpectralConfig, SpectralDelta
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError


class CoarseConfig(SpectralConfig, method="coarse"):
    scaling: float = option(3.0, "Scaling.")


class Doubled(SpectralDelta):
    """The transform of a spectrum is its double; it notes in which dtype that was to be done."""

    spread = 0.5

    def transform(self, entries):
        self.seen = entries.dtype
        return 2 * self.spectrum(entries)


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def make(base, **options):
    base = adapt(base) if isinstance(base, nn.Module) else base
    return Doubled(base, CoarseConfig(**{"n_frequency": 5, "init_weights": False, **options}))


@settings(deadline=None, max_examples=30)
@given(out=st.integers(1, 6), into=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(-(2**63), 2**63 - 1))
def test_entries_stand_at_distinct_places_that_follow_from_the_seed(out, into, share, seed):
    count = max(1, round(share * out * into))
    adapter, again = (make(nn.Linear(into, out), n_frequency=count, random_loc_seed=seed) for _ in range(2))
    assert torch.equal(adapter.places, again.places)
    assert len(set(adapter.places.tolist())) == count
    expected = torch.zeros(out * into).index_copy(0, adapter.places, 6 * adapter.coarse_spectrum.detach())
    torch.testing.assert_close(adapter.delta_weight(), expected.reshape(out, into))
    assert set(adapter.state_dict()) == {"coarse_spectrum"}


def test_places_are_the_layer_s_own_to_change():
    first, second = make(nn.Linear(4, 4)), make(nn.Linear(4, 4))
    expected = second.places.clone()
    first.places.zero_()
    assert torch.equal(second.places, expected)
    assert torch.equal(make(nn.Linear(4, 4)).places, expected)


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 6)])
def test_experts_have_their_own_entries_at_the_same_places(shape):
    adapter = make(ParameterLayer(Holder(*shape), "weight"))
    assert adapter.coarse_spectrum.shape == (*shape[:-2], 5)
    at_places = adapter.canonical_delta().flatten(-2)[..., adapter.places]
    torch.testing.assert_close(at_places, 6 * adapter.coarse_spectrum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_transforms_are_done_in_nothing_coarser_than_float32(dtype):
    adapter = make(nn.Linear(4, 4)).to(dtype)
    assert adapter.delta_weight().dtype == dtype
    assert adapter.seen == torch.promote_types(dtype, torch.float32)


def test_how_entries_start():
    assert not make(nn.Linear(6, 6), init_weights=True).coarse_spectrum.any()
    assert 0.4 < make(nn.Linear(60, 60), n_frequency=3600).coarse_spectrum.std() < 0.6


def test_places_are_not_drawn_anew_on_the_meta_device():
    with torch.device("meta"):
        adapter = make(nn.Linear(6, 4))
    assert adapter.places.is_meta and adapter.coarse_spectrum.shape == (5,)


def test_more_entries_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"CoarseConfig\.n_frequency: 25 is above the 24 .*n_frequency_pattern"):
        make(nn.Linear(6, 4), n_frequency=25)
    assert len(make(ParameterLayer(Holder(3, 4, 6), "weight"), n_frequency=24).places) == 24
    with pytest.raises(ConfigError, match=r"25 is above the 24 entries"):
        make(ParameterLayer(Holder(3, 4, 6), "weight"), n_frequency=25)
