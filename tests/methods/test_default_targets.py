"""What a method adapts when the config names nothing is what HF PEFT adapts, for every architecture that it knows."""

from __future__ import annotations

import re

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from peftcore.registry import registry
from peftcore.targets import ModuleMatcher

from .small_configs import first_party_methods

#: Methods that adapt what the config says, in every model.
WITHOUT_TABLE = {"trainable_tokens"}
#: Methods whose table HF PEFT does not show; the plugin's own test of a default config compares what is adapted.
HIDDEN_TABLE = {"adaption_prompt"}
#: Where the names of all tables are looked for.
PARENTS = (
    "",
    "model.language_model.layers.0.self_attn.",
    "model.vision_tower.layers.0.self_attn.",
    "transformer.h.1.mlp.",
    "encoder.layer.2.attention.output.",
)
OTHER_NAMES = ("embed_tokens", "lm_head", "pooler")


def their_table(method: str) -> dict[str, str | list[str]]:
    """Return HF PEFT's targets by the model's type; one method's table stands with its tuner only."""
    in_capitals = method.upper().replace("_", "")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[peft.PeftType[method.upper()]]
    usual = getattr(tuner, "target_module_mapping", None)
    return dict(getattr(peft.utils, f"TRANSFORMERS_MODELS_TO_{in_capitals}_TARGET_MODULES_MAPPING", usual) or {})


TABLES = {name: their_table(name) for name in first_party_methods() if name.upper() in peft.PeftType.__members__}
LISTED = {name for table in TABLES.values() for names in table.values() if isinstance(names, list) for name in names}
PATHS = [parent + name for parent in PARENTS for name in (*sorted(LISTED), *OTHER_NAMES)]


def meant_there(names: str | list[str]) -> set[str]:
    """Return what HF PEFT adapts: what an expression fits wholly, or what ends with one of several names."""
    if isinstance(names, str):
        return {path for path in PATHS if re.fullmatch(names, path)}
    return {path for path in PATHS if any(f".{path}".endswith(f".{name}") for name in names)}


def test_the_tables_are_found() -> None:
    without = {method for method, table in TABLES.items() if not table}
    assert {method for method in without if registry[method].adapter_cls is not None} == WITHOUT_TABLE | HIDDEN_TABLE


@pytest.mark.parametrize("method", TABLES)
def test_default_targets_are_hf_peft_s(method: str) -> None:
    assert registry[method]
    for model_type, theirs in TABLES[method].items():
        matcher = ModuleMatcher(registry.default_target_modules(method, model_type))
        here, there = {path for path in PATHS if matcher.match(nn.Identity(), path)}, meant_there(theirs)
        assert there
        assert here == there, f"for {model_type}"


def test_plugins_answer_for_their_own_method_and_for_known_models_only() -> None:
    assert all(registry[method] for method in TABLES)
    assert {method for method in TABLES if registry.default_target_modules(method, "custom")} == set()
    asked = {(method, model_type) for method in WITHOUT_TABLE for table in TABLES.values() for model_type in table}
    assert {pair for pair in asked if registry.default_target_modules(*pair)} == set()
