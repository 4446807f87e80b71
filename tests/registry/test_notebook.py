"""Methods registered in a process, without a package."""

import sys

import pytest

import peftcore
from peftcore import PeftType
from peftcore.exceptions import PluginLoadError, RegistrationError, UnknownMethodError


def test_a_registered_method_is_a_method_like_any_other(make_method):
    config_cls = make_method("scribbled").config_cls
    assert "scribbled" not in PeftType
    method = peftcore.register_peft_method(
        name="scribbled", config_cls=config_cls, adapter_cls=make_method("x").adapter_cls
    )
    try:
        assert PeftType.SCRIBBLED in PeftType
        assert peftcore.PEFT_TYPE_TO_CONFIG_MAPPING["SCRIBBLED"] is config_cls
        assert peftcore.PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.SCRIBBLED] == "scribbled_" == method.prefix
        assert config_cls().peft_type is PeftType.SCRIBBLED
    finally:
        peftcore.unregister_peft_method("SCRIBBLED")
    assert "scribbled" not in PeftType
    assert "scribbled" not in peftcore.PEFT_TYPE_TO_CONFIG_MAPPING
    with pytest.raises(UnknownMethodError):
        peftcore.PEFT_TYPE_TO_CONFIG_MAPPING["scribbled"]


def test_status_lists_them_apart(environment, make_method):
    registry = environment.install("good")
    registry.register(make_method("scribbled"))
    last = registry.status()[-1]
    assert (last.distribution, last.methods, last.state) == ("", ("scribbled",), "loaded")


REFUSED = {
    "duplicate name": ({"name": "taken"}, "'taken' exists already: it was registered in this process"),
    "name of an installed one": ({"name": "good"}, r"'good' exists already: it comes from fake-good 1\.2"),
    "duplicate prefix": ({"prefix": "taken_"}, "prefix 'taken_'.*'taken'"),
    "prefix shared by one side": ({"prefix": "taken_", "shares_prefix": True}, "prefix 'taken_'"),
    "inconsistent prefix": ({"prefix": "a.b"}, "field prefix"),
    "upper case": ({"name": "New_One"}, "field name"),
    "config is no PeftConfig": ({"config_cls": dict}, "field config_cls"),
    "config of another method": ({"name": "another"}, "field config_cls"),
    "unknown field": ({"colour": "red"}, "colour"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_registration_leaves_nothing_behind(environment, snapshot, make_method, case):
    change, message = REFUSED[case]
    registry = environment.install("good")
    registry.register(make_method("taken"))
    made = make_method(change["name"] if change.get("name") in ("taken", "good") else "new_one")
    fields = {"name": made.name, "config_cls": made.config_cls, "adapter_cls": made.adapter_cls, **change}
    before = snapshot(registry)
    with pytest.raises(RegistrationError, match=message):
        registry.register(**fields)
    assert snapshot(registry) == before
    assert "new_one" not in registry


def test_a_registration_that_is_no_method_is_refused(environment, snapshot, make_method):
    registry = environment.registry
    before = snapshot(registry)
    with pytest.raises(RegistrationError, match="not both; got both and paper"):
        registry.register(make_method("new_one"), paper="somewhere")
    with pytest.raises(RegistrationError, match="got str"):
        registry.register("new_one")
    with pytest.raises(RegistrationError, match="config_cls"):
        registry.register(name="new_one")
    assert snapshot(registry) == before


def test_replacing_takes_the_place_of_an_earlier_one(environment, make_method):
    registry = environment.registry
    registry.register(make_method("again"))
    second = make_method("again")
    assert registry.register(second, replace=True) is second is registry["again"]
    registry.unregister("again")
    assert "again" not in registry


def test_replacing_hides_an_installed_one_until_it_is_unregistered(environment, make_method):
    registry = environment.install("good")
    mine = make_method("good")
    registry.register(mine, replace=True)
    assert registry["good"] is mine
    assert "fake_good" not in sys.modules
    registry.unregister("good")
    assert registry["good"].config_cls.__module__ == "fake_good"


def test_methods_that_both_say_so_share_a_prefix(environment, make_method):
    registry = environment.registry
    for name in ("one", "two"):
        registry.register(make_method(name, prefix="common_", shares_prefix=True))
    assert registry["one"].prefix == registry["two"].prefix


def test_an_installed_plugin_does_not_take_the_prefix_of_a_registered_method(environment, make_method):
    registry = environment.install("good")
    registry.register(make_method("mine", prefix="good_"))
    with pytest.raises(PluginLoadError, match=r"'good_'.*'mine'"):
        registry["good"]
    registry.unregister("mine")
    registry.refresh()
    assert registry["good"].prefix == "good_"


def test_only_methods_of_this_process_can_be_unregistered(environment):
    registry = environment.install("good")
    with pytest.raises(RegistrationError, match=r"'good' was not registered in this process: .*fake-good 1\.2"):
        registry.unregister("good")
    with pytest.raises(UnknownMethodError):
        registry.unregister("no_such_method")
    assert registry["good"]
