"""Configs: types, bounds, JSON, and options for single layers."""

import json
import math
import pickle
import string
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftcore import LayerConfig, PeftConfig, PeftType, TaskType, option
from peftcore.exceptions import CheckpointError, ConfigError, UnknownMethodError

from .methods import PlainConfig, ScaledConfig

NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)


class ManyConfig(LayerConfig, method="many"):
    foreign_defaults: ClassVar = {"speed": 3}

    count: int = option(1, "A number.", at_least=0)
    ratio: float = option(0.5, "A share.", at_least=0.0, below=1.0)
    scale: float = option(1.0, "A factor.", above=0.0, at_most=2.0)
    flag: bool | None = option(None, "A flag or nothing.")
    names: list[str] = option([], "Names.")
    pair: tuple[int, int] | None = option(None, "Two numbers.")
    table: dict[str, int] = option({}, "A table.", extension=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", "8"),
        ("count", 1.5),
        ("count", True),
        ("count", None),
        ("count", -1),
        ("ratio", -0.1),
        ("ratio", 1.0),
        ("ratio", "0.5"),
        ("ratio", math.nan),
        ("scale", 0.0),
        ("scale", 2.1),
        ("flag", 1),
        ("flag", "yes"),
        ("names", "abc"),
        ("names", [1]),
        ("pair", (1, 2, 3)),
        ("pair", (1, "2")),
        ("table", {"a": "b"}),
        ("table", {1: 2}),
        ("target_modules", 3),
        ("target_modules", [3]),
        ("target_modules", {"a", None}),
        ("modules_to_save", "head"),
        ("bias", "some"),
        ("task_type", "COOKING"),
        ("inference_mode", "no"),
        ("peft_type", "PLAIN"),
        ("layers_pattern", "h"),
        ("trainable_token_indices", ["1"]),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(field, value):
    with pytest.raises(ConfigError, match=rf"ManyConfig\.{field}"):
        ManyConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("count", 0), ("ratio", 0), ("scale", 2), ("flag", None), ("flag", False), ("pair", (1, 2))]
)
def test_values_at_the_bounds_are_taken(field, value):
    assert getattr(ManyConfig(**{field: value}), field) == value


@pytest.mark.parametrize("pattern", [{"one": 0}, {"one": -3}, {"one": "8"}, {"one": True}], ids=repr)
def test_what_a_pattern_sets_has_the_options_bounds(pattern):
    with pytest.raises(ConfigError, match="rank_pattern"):
        PlainConfig(target_modules=["one"], rank_pattern=pattern)


def test_a_pattern_that_is_no_expression_is_refused():
    with pytest.raises(ConfigError, match="rank_pattern"):
        PlainConfig(target_modules=["one"], rank_pattern={"(": 2})


def test_unknown_fields_are_no_keywords():
    with pytest.raises(TypeError, match="colour"):
        ManyConfig(colour="red")


def test_it_knows_its_method():
    config = PlainConfig()
    assert config.peft_type is PeftType.PLAIN
    assert config.peft_type == "PLAIN"
    assert PlainConfig(peft_type="PLAIN") == config


def test_defaults_are_not_shared():
    first = ManyConfig()
    first.names.append("x")
    first.table["x"] = 1
    assert ManyConfig().names == [] and ManyConfig().table == {}


@given(
    count=st.integers(0, 10**9),
    ratio=st.floats(0, 1, exclude_max=True),
    flag=st.none() | st.booleans(),
    names=st.lists(NAMES),
    pair=st.none() | st.tuples(st.integers(), st.integers()),
    table=st.dictionaries(NAMES, st.integers()),
    target_modules=st.none() | NAMES | st.sets(NAMES),
    modules_to_save=st.none() | st.lists(NAMES),
    task_type=st.none() | st.sampled_from(list(TaskType)),
    inference_mode=st.booleans(),
)
def test_through_json_and_pickle(**values):
    config = ManyConfig(**values)
    again = ManyConfig.from_dict(json.loads(config.to_json_string()))
    pair, again.pair = config.pair, None if again.pair is None else tuple(again.pair)
    assert again == config
    assert again.pair == pair
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_file_is_sorted_and_plain(tmp_path):
    config = ManyConfig(target_modules={"b", "a"}, task_type=TaskType.CAUSAL_LM)
    config.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    values = json.loads(text)
    assert list(values) == sorted(values)
    assert values["target_modules"] == ["a", "b"]
    assert values["task_type"] == "CAUSAL_LM"
    assert values["peft_type"] == "MANY"


def test_extensions_are_written_only_when_they_are_used():
    assert "table" not in ManyConfig().to_dict()
    assert ManyConfig(table={"a": 1}).to_dict()["table"] == {"a": 1}
    assert not {"bias", "modules_to_save", "peft_version"} & ManyConfig().to_dict().keys()
    assert ManyConfig(peft_version="0.1").to_dict()["peft_version"] == "0.1"


def test_from_a_directory_with_keywords(tmp_path):
    PlainConfig(r=3).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == PlainConfig(r=3)
    assert PeftConfig.from_pretrained(tmp_path, r=5) == PlainConfig(r=5)
    assert PlainConfig.from_json_file(tmp_path / "adapter_config.json").r == 3
    PlainConfig(r=4).save_pretrained(tmp_path / "sub")
    assert PeftConfig.from_pretrained(tmp_path, subfolder="sub").r == 4


@pytest.mark.parametrize("empty", [None, False, "", [], {}], ids=repr)
def test_unknown_fields_that_ask_for_nothing_are_passed_over(empty):
    assert ManyConfig.from_dict({"peft_type": "MANY", "colour": empty}) == ManyConfig()


@pytest.mark.parametrize("asking", [True, 0, 1, "red", ["x"], {"a": 1}], ids=repr)
def test_unknown_fields_that_ask_for_something_are_named(asking):
    with pytest.raises(ConfigError, match="ManyConfig does not know colour="):
        ManyConfig.from_dict({"peft_type": "MANY", "colour": asking})


def test_foreign_defaults_ask_for_nothing():
    assert ManyConfig.from_dict({"peft_type": "MANY", "speed": 3}) == ManyConfig()
    with pytest.raises(ConfigError, match="speed=4"):
        ManyConfig.from_dict({"peft_type": "MANY", "speed": 4})


def test_a_file_of_another_method():
    with pytest.raises(ConfigError, match=r"PlainConfig.*SCALED"):
        PlainConfig.from_dict({"peft_type": "SCALED"})
    assert type(PeftConfig.from_dict({"peft_type": "SCALED"})) is ScaledConfig
    with pytest.raises(ConfigError, match="no peft_type"):
        PeftConfig.from_dict({"r": 3})
    with pytest.raises(UnknownMethodError):
        PeftConfig.from_dict({"peft_type": "NOSUCHMETHOD"})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00"], ids=repr)
def test_files_that_hold_no_object(tmp_path, text):
    path = tmp_path / "adapter_config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        PeftConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        PeftConfig.from_pretrained(tmp_path / "nowhere")


# --------------------------------------------------------------------------------------- for single layers


@pytest.mark.parametrize(
    ("patterns", "path", "r"),
    [
        ({}, "a.one", 4),
        ({"one": 2}, "a.one", 2),
        ({"one": 2}, "one", 2),
        ({"one": 2}, "a.someone", 4),
        ({"one": 2}, "one.two", 4),
        ({"a.one": 2}, "b.a.one", 2),
        ({r"layers\.[01]\..*": 2}, "model.layers.1.one", 2),
        ({r"layers\.[01]\..*": 2}, "model.layers.2.one", 4),
        ({"one": 2, "a.one": 3}, "a.one", 2),
        ({"a.one": 3, "one": 2}, "a.one", 3),
        ({"two|one": 2}, "a.one", 2),
    ],
)
def test_patterns_for_single_layers(patterns, path, r):
    config = PlainConfig(r=4, rank_pattern=patterns)
    assert config.for_layer(path).r == r
    assert config.r == 4
    assert config.for_layer(path).strength == config.strength


@given(NAMES, NAMES)
def test_a_name_means_the_end_of_a_path_from_a_dot_on(name, other):
    config = PlainConfig(r=4, rank_pattern={name: 2})
    assert config.for_layer(f"{other}.{name}").r == 2
    assert config.for_layer(f"{other}x{name}").r == 4
    assert config.for_layer(f"{name}.{other}x{name}").r == 4


def test_an_expression_and_indices_exclude_each_other():
    with pytest.raises(ConfigError, match="regular expression"):
        PlainConfig(target_modules=".*one", layers_to_transform=[0])
