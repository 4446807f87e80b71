"""Every option of HF PEFT's config is here by its name and with its default, or is left out for a reason."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest

from peftcore import PeftConfig
from peftcore.exceptions import ConfigError
from peftcore.registry import registry

from ..parity.harness import file_config
from ..parity.test_api import FIELDS_LEFT_OUT
from ..parity.test_configs import ABOUT_THE_WRITER, plain
from .small_configs import OPTIONS, first_party_methods

METHODS = [name for name in first_party_methods() if name.upper() in peft.PeftType.__members__]

_LORA_VARIANTS = dict.fromkeys(sorted(FIELDS_LEFT_OUT), "a variant of LoRA that is not part of this version")

#: By method: fields of HF PEFT's config that ours does not have, and why. Whoever asks for one is refused by name.
LEFT_OUT: dict[str, dict[str, str]] = {
    "lora": _LORA_VARIANTS,
    "adalora": _LORA_VARIANTS,
}


def their_config(method: str) -> Any:
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[method.upper()]]


def defaults(config_cls: type) -> dict[str, object]:
    """Return the fields' defaults; of a field without one, MISSING."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config_cls)
    }


def their_file(method: str, directory: Path) -> dict[str, Any]:
    """Return what HF PEFT writes of a config with nothing set but what must be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_config(method)(**OPTIONS.get(method, {})).save_pretrained(directory)
    return file_config(directory)


def kind_of(value: object) -> str:
    """Return what a value's type is called; each library has enumerations of its own."""
    return type(value).__name__


@pytest.mark.parametrize("method", METHODS)
def test_every_field_is_here_with_the_same_default(method: str) -> None:
    ours, theirs = defaults(registry[method].config_cls), defaults(their_config(method))
    left_out = LEFT_OUT.get(method, {})
    assert theirs.keys() - ours.keys() == left_out.keys()
    assert all(left_out.values())
    for name in theirs.keys() & ours.keys():
        # False is no 0: the types of the values that are asked for differ too.
        assert (ours[name], kind_of(ours[name])) == (theirs[name], kind_of(theirs[name])), name


@pytest.mark.parametrize("method", METHODS)
def test_what_asks_for_nothing_is_read(method: str, tmp_path: Path) -> None:
    theirs = their_file(method, tmp_path)
    ours = PeftConfig.from_dict(theirs)
    for name in (theirs.keys() & defaults(type(ours)).keys()) - ABOUT_THE_WRITER:
        assert plain(getattr(ours, name)) == plain(theirs[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_what_this_version_does_not_know_stays_out_of_files_that_do_not_ask_for_it(method: str, tmp_path: Path) -> None:
    registry[method].config_cls(**OPTIONS.get(method, {})).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # HF PEFT warns of fields that it does not know
        assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), their_config(method))


@pytest.mark.parametrize(("method", "field"), [(name, field) for name in METHODS for field in LEFT_OUT.get(name, {})])
def test_what_is_left_out_is_refused_by_name(method: str, field: str, tmp_path: Path) -> None:
    values = their_file(method, tmp_path)
    with pytest.raises(ConfigError, match=field):
        PeftConfig.from_dict({**values, field: {"asked": "for"}})
