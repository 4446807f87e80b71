"""Every hook, called as the core calls it, on fake plugins that implement it."""

import sys
import warnings

import pytest

from peftcore.exceptions import CheckpointError, PluginError


@pytest.fixture
def registry(environment):
    return environment.install("extension", "good")


def test_register_peft_method_is_called_once_per_plugin(environment):
    registry = environment.install("two_methods")
    assert registry["first"].name == "first"
    assert registry["second"].name == "second"
    assert sys.modules["fake_two_methods"].calls == ["register_peft_method"]


def test_adapt_base_layer_returns_the_first_answer(registry):
    view = registry.adapt_base_layer("a packed layer")
    assert view is sys.modules["fake_extension"].view
    assert registry.adapt_base_layer("any other layer") is None


def test_default_target_modules_returns_the_first_answer(registry):
    assert registry.default_target_modules("GOOD", "known_to_the_extension") == ["from_the_extension"]
    assert registry.default_target_modules("good", "unknown") is None


def test_default_target_modules_asks_a_method_s_plugin_once_it_is_loaded(registry):
    assert registry.default_target_modules("good", "known_to_the_method") is None
    assert registry["good"]
    assert registry.default_target_modules("good", "known_to_the_method") == ["from_the_method"]


def test_default_target_modules_are_those_of_the_method_s_table_unless_a_plugin_answers(registry):
    assert registry.default_target_modules("GOOD", "known_to_its_table") == ["from_the_table"]
    assert registry.default_target_modules("good", "known_to_the_extension") == ["from_the_extension"]


def test_convert_checkpoint_returns_the_first_answer(registry):
    assert registry.convert_checkpoint("good", {"old.a": 1, "b": 2}, None, "a file") == {"a": 1, "b": 2}
    assert registry.convert_checkpoint("good", {"a": 1}, None, "a file") is None


def test_register_commands_reaches_every_loaded_plugin(registry):
    cli = []
    registry.register_commands(cli)
    assert cli == ["a subcommand"]


def test_register_commands_goes_on_without_a_plugin_that_raises(environment, make_distribution):
    source = "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef register_commands(cli): 1 / 0\n"
    path = make_distribution("fake-bad-cli", source, "[peftcore.extensions]\ncli = fake_bad_cli\n")
    registry = environment.install(path, "extension")
    cli = []
    with pytest.warns(RuntimeWarning, match="register_commands of the plugin fake-bad-cli 1.0.*ZeroDivisionError"):
        registry.register_commands(cli)
    assert cli == ["a subcommand"]


def test_extensions_are_imported_when_a_hook_is_first_asked(registry):
    assert registry["good"]
    assert "fake_extension" not in sys.modules
    registry.adapt_base_layer("any layer")
    assert "fake_extension" in sys.modules


def test_a_disabled_extension_is_not_asked(environment):
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "tables"
    registry = environment.install("extension")
    assert registry.adapt_base_layer("a packed layer") is None
    assert "fake_extension" not in sys.modules


def test_a_broken_extension_is_named_in_one_warning_and_harms_nobody(environment):
    registry = environment.install("broken_extension", "extension")
    with pytest.warns(RuntimeWarning, match=r"fake-broken-extension 1\.0.*colour") as caught:
        assert registry.adapt_base_layer("a packed layer") is not None
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.adapt_base_layer("a packed layer") is not None
    assert {record.distribution: record.state for record in registry.status()} == {
        "fake-broken-extension": "broken",
        "fake-extension": "loaded",
    }


def test_refresh_finds_new_extensions(environment):
    registry = environment.install("good")
    assert registry.adapt_base_layer("a packed layer") is None
    environment.install("extension")
    registry.refresh()
    assert registry.adapt_base_layer("a packed layer") is not None


def test_an_extension_with_a_method_of_its_own_is_refused(environment, make_distribution, method_source):
    path = make_distribution(
        "fake-misplaced", method_source("misplaced"), "[peftcore.extensions]\nx = fake_misplaced\n"
    )
    registry = environment.install(path)
    with pytest.warns(RuntimeWarning, match="'misplaced', for which fake-misplaced has no entry point"):
        registry.load_extensions()
    assert "misplaced" not in registry


def test_one_module_may_stand_in_both_groups(environment, make_distribution, method_source):
    source = method_source("both") + "\n@hookimpl\ndef default_target_modules(method):\n    return [method]\n"
    entry_points = "[peftcore]\nboth = fake_both\n[peftcore.extensions]\nboth = fake_both\n"
    registry = environment.install(make_distribution("fake-both", source, entry_points))
    assert registry.default_target_modules("x", "y") == ["x"]
    assert registry["both"].name == "both"
    assert len(registry.loaded_plugins()) == 1


def test_an_error_in_a_hook_names_plugin_and_hook(registry):
    with pytest.raises(
        PluginError, match=r"adapt_base_layer of the plugin fake-extension 1.0.*ZeroDivisionError"
    ) as caught:
        registry.adapt_base_layer("a layer that makes it fail")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_raised_on_purpose_keeps_its_class_and_names_plugin_and_hook(registry):
    with pytest.raises(CheckpointError, match=r"convert_checkpoint of the plugin fake-extension .*ended long ago"):
        registry.convert_checkpoint("good", {}, None, "unreadable")
