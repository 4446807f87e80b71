"""The registry: loading at the first use, and what fails stays apart."""

import builtins
import sys
import threading

import pytest

from peftcore import PeftConfig, PeftMethod, PeftType
from peftcore.exceptions import (
    PluginConflictError,
    PluginDisabledError,
    PluginError,
    PluginLoadError,
    RegistrationError,
    UnknownMethodError,
)
from peftcore.registry import registry as process_registry


def states(registry):
    return {record.distribution: record.state for record in registry.status()}


# ---------------------------------------------------------------------------------------------- loading


def test_a_plugin_is_imported_at_the_first_use_and_once(environment):
    registry = environment.install("good", "two_methods")
    assert "good" in registry
    assert "fake_good" not in sys.modules
    method = registry["good"]
    assert isinstance(method, PeftMethod)
    assert method.name == "good"
    assert "fake_good" in sys.modules
    assert "fake_two_methods" not in sys.modules
    assert registry["GOOD"] is registry[PeftType.declare("good")] is method


def test_two_methods_of_one_plugin_are_loaded_together(environment):
    registry = environment.install("two_methods")
    first = registry["first"]
    assert sys.modules["fake_two_methods"].calls == ["register_peft_method"]
    second = registry["second"]
    assert sys.modules["fake_two_methods"].calls == ["register_peft_method"]
    assert (first.name, second.name) == ("first", "second")
    assert first.prefix == second.prefix == "common_"


def test_an_entry_point_may_name_an_object_in_a_module(environment, make_distribution):
    source = """
from peftcore.hookspecs import hookimpl
from fake_good import GoodAdapter
from peftcore.config import LayerConfig
from peftcore.method import PeftMethod

class ObjectConfig(LayerConfig, method="held"):
    pass

class Holder:
    @hookimpl
    def register_peft_method(self):
        return PeftMethod(name="held", config_cls=ObjectConfig, adapter_cls=GoodAdapter)

holder = Holder()
"""
    path = make_distribution("fake-holder", source, "[peftcore]\nheld = fake_holder:holder\n")
    registry = environment.install("good", path)
    assert registry["held"].config_cls.__name__ == "ObjectConfig"


@pytest.mark.parametrize("threads", [8])
def test_threads_that_ask_at_once_import_once(environment, make_distribution, method_source, threads):
    preamble = """
import builtins, time
builtins.fake_import_count = getattr(builtins, "fake_import_count", 0) + 1
time.sleep(0.2)
"""
    path = make_distribution("fake-slow", method_source("slow", preamble), "[peftcore]\nslow = fake_slow\n")
    registry = environment.install(path, "good")
    barrier = threading.Barrier(threads)
    found = []

    def ask():
        barrier.wait()
        found.append(registry["slow"])

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert builtins.fake_import_count == 1
    finally:
        del builtins.fake_import_count
    assert len(found) == threads
    assert len(set(map(id, found))) == 1


def test_a_method_can_be_used_while_another_plugin_is_being_imported(environment, make_distribution, method_source):
    """One slow import must not hold up the others, nor deadlock with a plugin that asks for another one."""
    preamble = """
import builtins
builtins.fake_started.set()
assert builtins.fake_go_on.wait(timeout=60)
"""
    path = make_distribution("fake-slow", method_source("slow", preamble), "[peftcore]\nslow = fake_slow\n")
    registry = environment.install(path, "good")
    builtins.fake_started, builtins.fake_go_on = threading.Event(), threading.Event()
    worker = threading.Thread(target=lambda: registry["slow"])
    try:
        worker.start()
        assert builtins.fake_started.wait(timeout=60)
        assert registry["good"].name == "good"
    finally:
        builtins.fake_go_on.set()
        worker.join()
        del builtins.fake_started, builtins.fake_go_on
    assert registry["slow"].name == "slow"


# ---------------------------------------------------------------------------------------------- failures


def test_unknown_methods(environment):
    registry = environment.install("good")
    for unknown in ("gud", "GOODD", 3, None):
        with pytest.raises(UnknownMethodError, match=str(unknown)):
            registry[unknown]
        assert unknown not in registry


def test_a_broken_plugin_names_itself_and_its_cause_and_harms_nobody(environment, snapshot):
    registry = environment.install("broken", "good")
    before = snapshot(registry)
    with pytest.raises(PluginLoadError) as caught:
        registry["broken"]
    message = str(caught.value)
    for part in ("fake-broken", "0.3", "broken = fake_broken", "ModuleNotFoundError", "a_module_that_nobody_has"):
        assert part in message
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert snapshot(registry) == before
    assert registry["good"].name == "good"
    assert states(registry) == {"fake-broken": "broken", "fake-good": "loaded"}


def test_what_failed_stays_failed_until_refreshed(environment, make_distribution, method_source):
    entry_points = "[peftcore]\nmended = fake_mended\n"
    path = make_distribution("fake-mended", "raise RuntimeError('not yet')", entry_points)
    registry = environment.install(path)
    with pytest.raises(PluginLoadError, match="RuntimeError: not yet"):
        registry["mended"]
    # A longer source, so that the cached bytecode is not taken for current.
    make_distribution("fake-mended", method_source("mended"), entry_points)
    with pytest.raises(PluginLoadError, match="RuntimeError: not yet"):
        registry["mended"]
    registry.refresh()
    assert registry["mended"].name == "mended"


BAD_SOURCES = {
    "it exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "no hook": ("x = 1", "promises the method 'bad'"),
    "unmarked": ("def register_peft_method(): ...", "@hookimpl"),
    "hook raises": (
        "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef register_peft_method(): 1 / 0",
        "ZeroDivisionError",
    ),
    "hook returns None": (
        "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef register_peft_method(): return None",
        "promises the method 'bad'",
    ),
    "wrong element": (
        "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef register_peft_method(): return [3]",
        "must return PeftMethod, or a list of them; got int",
    ),
    "unknown argument": (
        "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef adapt_base_layer(colour): ...",
        "PluginValidationError.*adapt_base_layer",
    ),
    "unknown hook": (
        "from peftcore.hookspecs import hookimpl\n@hookimpl\ndef adapt_base_layers(layer): ...",
        "PluginValidationError.*adapt_base_layers",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_refused_plugin_leaves_nothing_behind(environment, snapshot, make_distribution, case):
    source, message = BAD_SOURCES[case]
    path = make_distribution("fake-bad", source, "[peftcore]\nbad = fake_bad\n")
    registry = environment.install(path, "good")
    assert registry["good"]
    before = snapshot(registry)
    for _ in range(2):
        with pytest.raises(PluginLoadError, match=message):
            registry["bad"]
        assert snapshot(registry) == before


def test_a_wrong_return_type_leaves_nothing_behind(environment, snapshot):
    registry = environment.install("wrong_type")
    before = snapshot(registry)
    with pytest.raises(PluginLoadError, match="must return PeftMethod, or a list of them; got dict") as caught:
        registry["wrong_type"]
    assert isinstance(caught.value.__cause__, RegistrationError)
    assert snapshot(registry) == before


def test_a_method_without_an_entry_point_is_refused_with_its_siblings(environment, snapshot):
    registry = environment.install("stray")
    before = snapshot(registry)
    with pytest.raises(PluginLoadError, match=r"'stray', for which fake-stray has no entry point"):
        registry["announced"]
    assert snapshot(registry) == before
    assert "stray" not in registry


def test_an_entry_point_without_its_method_is_refused(environment, snapshot, make_distribution, method_source):
    entry_points = "[peftcore]\nkept = fake_half\npromised = fake_half\n"
    registry = environment.install(make_distribution("fake-half", method_source("kept"), entry_points))
    before = snapshot(registry)
    for name in ("kept", "promised"):
        with pytest.raises(PluginLoadError, match="promises the method 'promised', but it registers kept"):
            registry[name]
    assert snapshot(registry) == before


def test_the_same_method_twice_is_refused(environment, make_distribution, method_source):
    source = (
        method_source("twice")
        + "\n\nonce = register_peft_method\n\n@hookimpl\ndef register_peft_method():\n    return [once(), once()]\n"
    )
    source = source.replace(
        "\n\n@hookimpl\ndef register_peft_method():\n    return PeftMethod",
        "\n\ndef register_peft_method():\n    return PeftMethod",
    )
    registry = environment.install(make_distribution("fake-twice", source, "[peftcore]\ntwice = fake_twice\n"))
    with pytest.raises(PluginLoadError, match="two methods named 'twice'"):
        registry["twice"]


@pytest.mark.parametrize(("first", "second"), [("good", "taker"), ("taker", "good")])
def test_a_taken_prefix_is_refused(environment, snapshot, make_distribution, method_source, first, second):
    source = method_source("taker", fields="prefix='good_'")
    registry = environment.install("good", make_distribution("fake-taker", source, "[peftcore]\ntaker = fake_taker\n"))
    assert registry[first].prefix == "good_"
    before = snapshot(registry)
    with pytest.raises(PluginLoadError, match=f"prefix 'good_' of the method '{second}' is also that of '{first}'"):
        registry[second]
    assert snapshot(registry) == before


def test_rivals_are_both_named_and_neither_is_imported(environment):
    registry = environment.install("rival_one", "rival_two", "good")
    with pytest.raises(PluginConflictError) as caught:
        registry["contested"]
    assert "fake-rival-one 1.0" in str(caught.value)
    assert "fake-rival-two 2.0" in str(caught.value)
    assert not {"fake_rival_one", "fake_rival_two"} & sys.modules.keys()
    assert registry["good"]
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "fake-rival-one"
    registry.refresh()
    assert registry["contested"].config_cls.__module__ == "fake_rival_two"


def test_a_disabled_method_is_not_imported(environment):
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "good"
    registry = environment.install("good")
    assert "good" not in registry
    with pytest.raises(PluginDisabledError, match=r"fake-good 1\.2.*PEFTCORE_DISABLED_PLUGINS"):
        registry["good"]
    assert "fake_good" not in sys.modules


def test_disabling_one_of_two_methods_leaves_the_other(environment):
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "second"
    registry = environment.install("two_methods")
    assert registry["first"].name == "first"
    with pytest.raises(PluginDisabledError):
        registry["second"]
    del environment.environ["PEFTCORE_DISABLED_PLUGINS"]
    registry.refresh()
    assert registry["second"].name == "second"
    assert sys.modules["fake_two_methods"].calls == ["register_peft_method"]


def test_disabling_a_loaded_method_takes_effect_at_the_refresh(environment):
    registry = environment.install("good")
    loaded = registry["good"]
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "fake-good"
    assert registry["good"] is loaded
    registry.refresh()
    with pytest.raises(PluginDisabledError):
        registry["good"]


def test_a_badly_named_method_is_a_finding(environment):
    registry = environment.install("bad_name", "good")
    with pytest.raises(UnknownMethodError, match="Bad-Name"):
        registry["bad_name"]
    (record,) = [record for record in registry.status() if record.distribution == "fake-bad-name"]
    assert (record.state, record.methods) == ("broken", ("Bad-Name",))
    assert "lower-case" in record.cause


def test_a_plugin_that_asks_for_itself_while_it_is_imported_is_refused(environment, make_distribution):
    source = "import builtins\nbuiltins.fake_registry['narcissus']\n"
    path = make_distribution("fake-narcissus", source, "[peftcore]\nnarcissus = fake_narcissus\n")
    registry = environment.install(path)
    builtins.fake_registry = registry
    try:
        with pytest.raises(PluginLoadError, match="asks for itself"):
            registry["narcissus"]
    finally:
        del builtins.fake_registry


# ------------------------------------------------------------------------------------ refresh and status


def test_refresh_finds_what_was_installed_since_and_keeps_what_is_loaded(environment):
    registry = environment.install("good")
    loaded = registry["good"]
    environment.install("two_methods")
    with pytest.raises(UnknownMethodError):
        registry["first"]
    registry.refresh()
    assert registry["first"].name == "first"
    assert registry["good"] is loaded


def test_refresh_of_the_process_after_an_installation(run_python, make_distribution, method_source, tmp_path):
    made = make_distribution("fake-late", method_source("late"), "[peftcore]\nlate = fake_late\n")
    site = tmp_path / "site"
    site.mkdir()
    # The folder's time is put back, as on a file system with coarse times: then only a refresh can show what is new.
    code = f"""
import os, shutil
from peftcore import PeftType
from peftcore.registry import registry
site, made = {str(site)!r}, {str(made)!r}
assert "late" not in PeftType
times = os.stat(site)
shutil.copytree(made, site, dirs_exist_ok=True)
os.utime(site, ns=(times.st_atime_ns, times.st_mtime_ns))
assert "late" not in PeftType
registry.refresh()
print(PeftType.LATE, registry[PeftType.LATE].name)
"""
    assert run_python(code, site) == "LATE late"


def test_status_imports_nothing_and_tells_each_state(environment):
    environment.environ["PEFTCORE_DISABLED_PLUGINS"] = "fake-stray"
    names = ("good", "broken", "rival_one", "rival_two", "two_methods", "extension", "stray")
    registry = environment.install(*names)
    records = {record.distribution: record for record in registry.status()}
    assert not [name for name in sys.modules if name.startswith("fake_")]
    assert {name: record.state for name, record in records.items()} == {
        "fake-good": "available",
        "fake-broken": "available",
        "fake-rival-one": "conflicting",
        "fake-rival-two": "conflicting",
        "fake-two-methods": "available",
        "fake-extension": "available",
        "fake-stray": "disabled",
    }
    assert "fake-rival-two" in records["fake-rival-one"].cause
    assert records["fake-two-methods"].methods == ("first", "second")
    assert records["fake-extension"].methods == ()
    assert records["fake-good"][:3] == ("fake-good", "1.2", "fake_good")
    assert registry["good"]
    with pytest.raises(PluginError):
        registry["broken"]
    after = {record.distribution: record for record in registry.status()}
    assert after["fake-good"].state == "loaded"
    assert after["fake-broken"].state == "broken"
    assert "a_module_that_nobody_has" in after["fake-broken"].cause


def test_configs_find_their_class_through_the_registry():
    assert PeftConfig.find_class == process_registry.find_config_class
