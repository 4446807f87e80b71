"""Re-exports: ``from peftcore import C3AConfig``."""

import sys

import pytest

from peftcore.exceptions import PluginConflictError, PluginDisabledError, PluginLoadError
from peftcore.exports import find_export, fitting, loaded_exports


def test_the_longest_fitting_name_comes_first():
    methods = ["lo", "adalo", "prefix_tuning", "tuning"]
    assert fitting("AdaLoConfig", methods) == ["adalo", "lo"]
    assert fitting("PrefixTuningConfig", methods) == ["prefix_tuning", "tuning"]
    assert fitting("other_thing", methods) == []


def test_a_fitting_plugin_is_the_only_one_imported(environment):
    registry = environment.install("good", "two_methods", "broken")
    config_cls = find_export("GoodConfig", registry)
    assert config_cls is sys.modules["fake_good"].GoodConfig
    assert config_cls is registry["good"].config_cls
    assert "fake_two_methods" not in sys.modules


def test_the_others_are_asked_if_no_name_fits(environment):
    registry = environment.install("broken", "two_methods", "rival_one", "rival_two", "good")
    assert find_export("Unrelated", registry) is sys.modules["fake_good"].Unrelated


def test_only_names_in_all_are_offered(environment):
    registry = environment.install("good")
    with pytest.raises(AttributeError, match="GoodAdapter"):
        find_export("GoodAdapter", registry)


def test_a_failure_surfaces_where_its_own_name_fits_and_nowhere_else(environment):
    registry = environment.install("broken", "good", "rival_one", "rival_two")
    with pytest.raises(PluginLoadError, match="a_module_that_nobody_has"):
        find_export("BrokenConfig", registry)
    with pytest.raises(PluginConflictError, match="fake-rival-one"):
        find_export("ContestedConfig", registry)
    with pytest.raises(AttributeError, match="NobodyHasThis"):
        find_export("NobodyHasThis", registry)


def test_another_plugin_may_offer_a_name_that_fits_a_broken_one(environment, make_distribution, method_source):
    source = method_source("other") + "\n__all__ = ['BrokenButMine']\nBrokenButMine = 1\n"
    path = make_distribution("fake-other", source, "[peftcore]\nother = fake_other\n")
    assert find_export("BrokenButMine", environment.install("broken", path)) == 1


def test_a_disabled_plugin_offers_nothing_and_says_so(environment):
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "good"
    registry = environment.install("good")
    with pytest.raises(PluginDisabledError, match="PEFTCORE_DISABLED_PLUGINS"):
        find_export("GoodConfig", registry)
    assert "fake_good" not in sys.modules


@pytest.mark.parametrize("name", ["__wrapped__", "_private", "_ipython_display_", "registry", "peft_type", "adapters"])
def test_private_names_and_submodules_load_no_plugin(environment, name):
    registry = environment.install("good")
    with pytest.raises(AttributeError, match=name):
        find_export(name, registry)
    assert environment.scans == 0


def test_a_missing_first_party_plugin_gets_its_pip_line(environment, monkeypatch):
    registry = environment.install("good")
    extras = {"ada_alpha": "peftcore-ada-alpha", "alpha": "peftcore-alpha", "good": "peftcore-good"}
    monkeypatch.setattr(registry.catalog, "first_party", lambda: extras)
    with pytest.raises(AttributeError, match=r"'ada_alpha' is not installed: pip install peftcore-ada-alpha$"):
        find_export("AdaAlphaConfig", registry)
    with pytest.raises(AttributeError) as caught:
        find_export("GoodTypo", registry)
    assert "pip install" not in str(caught.value)


def test_an_import_statement_shows_the_pip_line_and_hasattr_still_answers(run_python):
    code = """
import importlib_metadata
importlib_metadata.requires = lambda name: [f'{name}-alpha; extra == "alpha"']
import peftcore
assert not hasattr(peftcore, "AlphaConfig")
try:
    peftcore.AlphaConfig
except AttributeError as error:
    print(error)
try:
    from peftcore import AlphaConfig
except ImportError as error:
    print(error)
from peftcore import registry
print(type(registry).__name__)
"""
    attribute, statement, submodule = run_python(code).splitlines()
    assert attribute.endswith("pip install peftcore-alpha")
    assert statement == attribute
    assert submodule == "module"


def test_what_is_loaded_can_be_listed(environment):
    registry = environment.install("good", "extension")
    assert loaded_exports(registry) == set()
    assert registry["good"]
    assert loaded_exports(registry) == {"GoodConfig", "Unrelated"}


def test_from_the_package_itself(run_python):
    code = """
import sys, peftcore
dir(peftcore), hasattr(peftcore, "__path__"), hasattr(peftcore, "_nothing")
import peftcore.catalog
assert not [name for name in sys.modules if name.startswith("fake_")]
from peftcore import GoodConfig
import fake_good
assert GoodConfig is fake_good.GoodConfig and "GoodConfig" in dir(peftcore)
assert "PeftType" in dir(peftcore) and "__version__" in dir(peftcore)
assert not hasattr(peftcore, "Nonsense")
try:
    from peftcore import Nonsense
except ImportError as error:
    print(error)
"""
    assert "'Nonsense', and no installed plugin offers it" in run_python(code, "good", "broken")


def test_a_plugin_may_take_a_name_from_another_while_it_is_imported(run_python, make_distribution, method_source):
    source = method_source("leaning", preamble="from peftcore import GoodConfig, Unrelated")
    path = make_distribution("fake-leaning", source, "[peftcore]\nleaning = fake_leaning\n")
    code = "from peftcore.registry import registry; print(registry['leaning'].name)"
    assert run_python(code, path, "good") == "leaning"
