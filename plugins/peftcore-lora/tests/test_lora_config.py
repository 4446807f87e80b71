"""LoraConfig: what it accepts, what it refuses, and what it reads and writes."""

import copy
import pickle

import peft
import pytest

from peftcore.exceptions import ConfigError
from peftcore_lora import LoraConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_dropout", -0.1),
        ("lora_dropout", 1.0),
        ("lora_alpha", "16"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", None),
        ("conv_decomposition", "spatial"),
        ("bias", "c3a_only"),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 2.5}),
        ("alpha_pattern", {"q_proj": "x"}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"LoraConfig.{field}"):
        LoraConfig(**{field: value})


@pytest.mark.parametrize("ranks", [{"r": 3}, {"rank_pattern": {"v_proj": 5}}])
def test_orthogonal_factors_need_an_even_rank(ranks):
    with pytest.raises(ConfigError, match="even"):
        LoraConfig(init_lora_weights="orthogonal", **ranks)


def test_patterns_hold_for_the_path_s_end_and_the_first_one_wins():
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        rank_pattern={r"layers\.[01]\.q_proj": 2, "q_proj": 4, "^head": 6},
        alpha_pattern={"layers.1.q_proj": 32.0},
    )
    found = {
        path: (special.r, special.lora_alpha)
        for path in ("layers.0.q_proj", "layers.1.q_proj", "layers.2.q_proj", "my_q_proj", "head", "layers.0.head")
        for special in (config.for_layer(path),)
    }
    assert found == {
        "layers.0.q_proj": (2, 16),
        "layers.1.q_proj": (2, 32.0),
        "layers.2.q_proj": (4, 16),
        "my_q_proj": (8, 16),
        "head": (6, 16),
        "layers.0.head": (8, 16),
    }


def test_defaults_are_those_of_hf_peft():
    theirs = peft.LoraConfig()
    ours = LoraConfig().to_dict()
    # The version is written when a file is.
    differing = {name for name, value in ours.items() if name != "peft_version" and getattr(theirs, name) != value}
    assert not differing


def test_a_config_written_by_hf_peft_with_all_its_fields_is_read(tmp_path):
    peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q"], rank_pattern={"q": 2}, bias="lora_only").save_pretrained(
        tmp_path
    )
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.rank_pattern, config.bias) == (4, 12, {"q": 2}, "lora_only")
    assert config.target_modules == {"q"}


@pytest.mark.parametrize("wish", [{"use_dora": True}, {"qalora_group_size": 32}, {"alora_invocation_tokens": [1, 2]}])
def test_a_config_that_asks_for_a_variant_that_is_not_here_is_refused(wish, tmp_path):
    values = {**LoraConfig().to_dict(), **wish}
    with pytest.raises(ConfigError, match=next(iter(wish))):
        LoraConfig.from_dict(values)


def test_hf_peft_reads_a_config_written_here(tmp_path):
    LoraConfig(r=4, target_modules=["q"], use_rslora=True, lora_bias=True).save_pretrained(tmp_path)
    theirs = peft.LoraConfig.from_pretrained(tmp_path)
    assert (theirs.r, theirs.target_modules, theirs.use_rslora, theirs.lora_bias) == (4, {"q"}, True, True)


def test_fields_that_hf_peft_does_not_know_are_written_only_when_used():
    assert not {"conv_decomposition", "full_matrix_if_smaller"} & LoraConfig().to_dict().keys()
    used = LoraConfig(conv_decomposition="balanced", full_matrix_if_smaller=True)
    assert LoraConfig.from_dict(used.to_dict()) == used


def test_copies_are_equal():
    config = LoraConfig(r=4, rank_pattern={"q": 2}, init_lora_weights="gaussian", target_modules=["q"])
    assert (
        copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == LoraConfig.from_dict(config.to_dict()) == config
    )
