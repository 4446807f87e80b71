"""`adapter_config.json` travels both ways."""

from __future__ import annotations

import dataclasses
import json
import warnings

import peft
import pytest

import peftcore
from peftcore import LoraConfig, PeftConfig

from .cases import CASES
from .harness import Case, file_config

#: Written anew by each writer.
ABOUT_THE_WRITER = {"peft_version", "auto_mapping", "base_model_name_or_path"}


def shared_fields() -> set[str]:
    ours, theirs = ({field.name for field in dataclasses.fields(cls)} for cls in (LoraConfig, peft.LoraConfig))
    return ours & theirs


def plain(value):
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def assert_equal_configs(ours, theirs) -> None:
    for name in shared_fields() - ABOUT_THE_WRITER:
        here, there = getattr(ours, name), getattr(theirs, name)
        assert plain(here) == plain(there), name


@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_a_config_travels_both_ways(case: Case, tmp_path):
    ours, theirs = LoraConfig(**case.options), peft.LoraConfig(**case.options)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # HF PEFT warns of fields that it does not know
        assert_equal_configs(ours, peft.PeftConfig.from_pretrained(tmp_path / "ours"))
        assert_equal_configs(PeftConfig.from_pretrained(tmp_path / "theirs"), theirs)


def test_the_defaults_are_the_same():
    assert_equal_configs(LoraConfig(), peft.LoraConfig())


def test_both_write_the_same_values(tmp_path):
    case = Case("mlp", target_modules=["first", "second"], modules_to_save=["head"], rank_pattern={"first": 3})
    case.ours().save_pretrained(tmp_path / "ours")
    case.theirs().save_pretrained(tmp_path / "theirs")
    ours, theirs = file_config(tmp_path / "ours"), file_config(tmp_path / "theirs")
    assert ours.keys() <= theirs.keys()
    for name in ours.keys() - ABOUT_THE_WRITER:
        assert plain(ours[name]) == plain(theirs[name]), name
    assert ours["auto_mapping"] == theirs["auto_mapping"]
    assert ours["inference_mode"] is True


def test_our_own_options_stay_out_of_files_that_do_not_use_them(tmp_path):
    theirs = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    LoraConfig().save_pretrained(tmp_path)
    assert set(file_config(tmp_path)) <= theirs


@pytest.mark.parametrize(
    "asked",
    [
        {"use_dora": True},
        {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [1]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_this_version_does_not_have_is_refused_by_name(asked, tmp_path):
    values = {**peft.LoraConfig(target_modules=["first"]).to_dict(), **asked, "target_modules": ["first"]}
    values = {name: value for name, value in values.items() if name != "runtime_config"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values, default=str))
    with pytest.raises(peftcore.exceptions.ConfigError, match=next(iter(asked))):
        PeftConfig.from_pretrained(tmp_path)


def test_a_task_settles_the_same_things():
    case = Case("bert", task_type="SEQ_CLS")
    ours, theirs = case.ours(), case.theirs()
    assert type(ours).__name__ == type(theirs).__name__
    # HF PEFT writes its whole list of names, we those that the model has.
    assert set(ours.peft_config["default"].modules_to_save) <= set(theirs.peft_config["default"].modules_to_save)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
