"""Projections: what layers share is as large as the largest of them, from a seed, and in files if that is wanted."""

import pytest
import torch
from torch import nn

from peftcore.adapters.projections import (
    Chain,
    PairConfig,
    ProjectedDelta,
    ProjectionConfig,
    ProjectionPair,
    Projections,
    ScaledDelta,
)
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


class AroundConfig(PairConfig, method="around"):
    pass


class AroundAdapter(ProjectedDelta):
    def __init__(self, base, config, shared):
        super().__init__(base, config, shared)
        self.around_outer, self.around_inner = self.scales(config)

    def chain(self):
        a, b = self.projections()
        return Chain(a, self.around_inner, b, self.around_outer)


class Bare(ScaledDelta):
    """Nothing scales its outputs."""

    def chain(self):
        out, into = self.base.matrix_shape
        return Chain(torch.ones(2, into), torch.tensor([2.0, 3.0]), torch.ones(out, 2))


def around(layer, **options):
    base = adapt(layer)
    config = AroundConfig(r=2, **options)
    return AroundAdapter(base, config, ProjectionPair(config, [base]))


INPUTS = {
    nn.Linear(6, 4): torch.randn(3, 6),
    nn.Embedding(9, 5): torch.tensor([[1, 8, 0]]),
    nn.Conv2d(2, 4, 3): torch.randn(2, 2, 5, 5),
    nn.Conv1d(4, 6, 3, groups=2): torch.randn(2, 4, 5),
}


@pytest.mark.parametrize("layer", INPUTS, ids=repr)
def test_scaled_features_are_those_of_the_scaled_matrices(layer):
    adapter = around(layer, init_weights=False)
    torch.nn.init.normal_(adapter.around_outer)
    a, b = adapter.projections()
    expected = adapter.around_outer.diag() @ b @ adapter.around_inner.diag() @ a
    torch.testing.assert_close(adapter.delta_weight(), expected)
    effect = adapter.base.apply(expected.reshape(adapter.base.weight_shape), INPUTS[layer])
    torch.testing.assert_close(adapter.delta_forward(INPUTS[layer]), effect)


def test_outputs_need_no_scales():
    adapter = Bare(adapt(nn.Linear(6, 4)), AroundConfig())
    torch.testing.assert_close(adapter.delta_weight(), torch.full((4, 6), 5.0))
    torch.testing.assert_close(adapter.delta_forward(torch.ones(1, 6)), torch.full((1, 4), 30.0))


def test_features_are_scaled_rather_than_matrices(monkeypatch):
    adapter = around(nn.Linear(6, 4))
    monkeypatch.setattr(adapter, "factors", lambda: pytest.fail("matrices were scaled"))
    adapter.delta_forward(torch.randn(3, 6))


def test_scales_start_so_that_nothing_changes_or_at_random():
    still, moved = around(nn.Linear(6, 4), d_initial=0.3), around(nn.Linear(6, 4), init_weights=False)
    assert not still.around_outer.any() and (still.around_inner == 0.3).all()
    assert (moved.around_outer == 1).all() and moved.around_inner.unique().numel() == 2
