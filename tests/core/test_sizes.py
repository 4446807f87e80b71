"""Checks of what a config asks of a layer: each says the field, the layer and what to do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftcore import LayerConfig, option
from peftcore.adapters.dropout import check_dropout, input_dropout
from peftcore.adapters.sizes import check_divisor, check_rank
from peftcore.adapters.starts import uniform
from peftcore.base_layers import adapt
from peftcore.config import dropout_option
from peftcore.exceptions import ConfigError


class SizedConfig(LayerConfig, method="sized"):
    rank: int = option(1, "Rank.", at_least=1, pattern="rank_pattern")
    rank_pattern: dict[str, int] = option({}, "Ranks.")
    length: int = option(1, "Length.", at_least=1)
    noise: float = dropout_option("an entry of the input is dropped")


SIZES = st.integers(1, 12)


@given(out=SIZES, into=SIZES, number=SIZES)
def test_a_rank_and_a_length_fit_or_are_refused(out, into, number):
    base = adapt(nn.Linear(into, out))
    for check, field, fits in (
        (check_rank, "rank", number <= max(out, into)),
        (check_divisor, "length", math.gcd(out, into) % number == 0),
    ):
        config = SizedConfig(**{field: number})
        if fits:
            check(base, config, field)
        else:
            with pytest.raises(ConfigError, match=rf"SizedConfig\.{field}: {number} .*Linear .kind linear."):
                check(base, config, field)


def test_the_advice_names_the_pattern_of_a_field_that_has_one():
    base = adapt(nn.Conv1d(4, 6, 3))
    with pytest.raises(ConfigError, match=r"6 × 12: .*rank_pattern, or exclude it"):
        check_rank(base, SizedConfig(rank=13), "rank")
    with pytest.raises(ConfigError, match=r"divide the 6 outputs of .*6 × 12.*a divisor of 6, or exclude the layer"):
        check_divisor(base, SizedConfig(length=4), "length")


def test_dropout_is_refused_where_the_weight_is_used_as_a_whole():
    whole, usual = adapt(nn.MultiheadAttention(8, 2)), adapt(nn.Linear(8, 8))
    for check in (check_dropout, input_dropout):
        with pytest.raises(ConfigError, match=r"SizedConfig\.noise: .*exclude the MultiheadAttention"):
            check(whole, SizedConfig(noise=0.1), "noise")
        check(whole, SizedConfig(noise=0.1, inference_mode=True), "noise")
        check(whole, SizedConfig(), "noise")
    assert input_dropout(usual, SizedConfig(noise=0.1), "noise").p == 0.1
    for nothing in (SizedConfig(), SizedConfig(noise=0.1)):
        layer = usual if nothing.noise == 0 else adapt(nn.Embedding(3, 4))
        assert isinstance(input_dropout(layer, nothing, "noise"), nn.Identity)


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5])
def test_a_probability_lies_below_one(probability):
    with pytest.raises(ConfigError, match=r"SizedConfig\.noise"):
        SizedConfig(noise=probability)


def test_a_uniform_start_is_bounded_by_the_fan_in():
    drawn = uniform(50, 4, 25)
    assert 0.099 < drawn.abs().max() <= 0.1
    assert 0.49 < uniform(50, 100, fan_in=4).abs().max() <= 0.5
    assert uniform(3, 2).shape == (3, 2)
