"""Projections: what layers share is as large as the largest of them, from a seed, and in files if that is wanted."""

import pytest
import torch
from torch import nn

from peftcore.adapters.projections import ProjectionConfig, Projections
from peftcore.base_layers import adapt


class DrawnConfig(ProjectionConfig, method="projected"):
    pass


class Drawn(Projections):
    def draw(self, config, out, into, generator):
        return {"drawn_P": torch.randn(out, into, generator=generator, device="cpu")}


BASES = [adapt(layer) for layer in (nn.Linear(3, 8), nn.Conv2d(2, 4, (2, 3)))]


def test_the_largest_sizes_of_any_layer_are_drawn():
    assert Drawn(DrawnConfig(), BASES).drawn_P.shape == (8, 12)


def test_the_numbers_are_the_seed_s_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, again, other = (Drawn(DrawnConfig(projection_prng_key=key), BASES).drawn_P for key in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, torch.randn(8, 12, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("saved", [True, False])
def test_files_hold_them_if_asked_and_they_never_train(saved):
    drawn = Drawn(DrawnConfig(save_projection=saved), BASES)
    assert ("drawn_P" in drawn.state_dict()) == saved
    assert not list(drawn.parameters())
