"""The live mappings from PeftType."""

import sys
from collections.abc import Mapping

import pytest

import peftcore
from peftcore import PeftType
from peftcore.exceptions import PluginLoadError, UnknownMethodError
from peftcore.mappings import MethodMapping, MixedMethodMapping


@pytest.fixture
def registry(environment):
    return environment.install("good", "two_methods", "broken")


def configs(registry):
    return MethodMapping(registry, registry.find_config_class)


def test_listing_imports_nothing_and_a_lookup_imports_one(registry):
    mapping = configs(registry)
    assert [*mapping] == ["BROKEN", "FIRST", "GOOD", "SECOND"]
    assert all(isinstance(key, PeftType) for key in mapping)
    assert len(mapping) == 4
    assert "GOOD" in mapping
    assert "good" in mapping
    assert "other" not in mapping
    assert "good" in repr(mapping)
    assert not [name for name in sys.modules if name.startswith("fake_")]
    assert mapping[PeftType.declare("good")] is sys.modules["fake_good"].GoodConfig
    assert "fake_two_methods" not in sys.modules


def test_lookups_of_what_is_not_there(registry):
    mapping = configs(registry)
    with pytest.raises(KeyError):
        mapping["other"]
    assert mapping.get("other") is None
    assert isinstance(UnknownMethodError("x"), KeyError)
    with pytest.raises(PluginLoadError):
        mapping["broken"]


def test_they_can_not_be_written(registry):
    mapping = configs(registry)
    with pytest.raises(TypeError):
        mapping["good"] = dict
    with pytest.raises(TypeError):
        del mapping["good"]


def test_they_follow_registrations(registry, make_method):
    mapping = configs(registry)
    method = make_method("scribbled")
    registry.register(method)
    assert mapping["scribbled"] is method.config_cls
    assert len(mapping) == 5
    registry.unregister("scribbled")
    assert len(mapping) == 4


def test_a_method_without_a_tuner_has_the_default_one(registry, make_method):
    class Default: ...

    class Own: ...

    registry.default_tuner_cls = Default
    registry.register(make_method("with_tuner", tuner_cls=Own))
    mapping = MethodMapping(registry, registry.find_tuner_class)
    assert mapping["good"] is Default
    assert mapping["with_tuner"] is Own


def test_the_mixed_mapping_has_only_what_can_be_mixed_and_leaves_out_what_fails(registry):
    mapping = MixedMethodMapping(registry, registry.find_config_class)
    assert "second" in repr(mapping)
    assert "fake_two_methods" not in sys.modules
    assert [*mapping] == ["FIRST", "GOOD"]
    assert len(mapping) == 2
    assert "first" in mapping
    assert "second" not in mapping
    assert "broken" not in mapping
    assert 3 not in mapping
    assert mapping["first"].__name__ == "FirstConfig"
    with pytest.raises(KeyError, match="'second' can't be active beside"):
        mapping["second"]


@pytest.mark.parametrize("what", ["CONFIG", "TUNER", "PREFIX", "MIXED_MODEL"])
def test_the_process_has_four(what):
    assert isinstance(getattr(peftcore, f"PEFT_TYPE_TO_{what}_MAPPING"), Mapping)


def test_the_process_mappings_agree(run_python):
    code = """
import sys, peftcore
from peftcore import PeftType
from peftcore.registry import registry
assert list(peftcore.PEFT_TYPE_TO_CONFIG_MAPPING) == list(PeftType) == list(peftcore.PEFT_TYPE_TO_TUNER_MAPPING)
assert not [name for name in sys.modules if name.startswith("fake_")]
registry.default_tuner_cls = dict
print(peftcore.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.GOOD].__name__, peftcore.PEFT_TYPE_TO_PREFIX_MAPPING["good"],
      peftcore.PEFT_TYPE_TO_TUNER_MAPPING["GOOD"].__name__, "GOOD" in peftcore.PEFT_TYPE_TO_MIXED_MODEL_MAPPING)
"""
    assert run_python(code, "good") == "GoodConfig good_ dict True"
