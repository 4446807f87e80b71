"""What an import of peftcore brings along, and that its names are found all the same."""

import ast
import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import peftcore
from peftcore import public
from peftcore.collector import paused_collector

PUBLIC = Path(public.__file__).read_text(encoding="utf-8")


def imported_by(code: str, after: str = "pass") -> set[str]:
    """Runs code in a fresh interpreter and returns the modules that it imported, beyond those that ``after`` needs."""
    program = (
        f"import json, sys\n{after}\nknown = set(sys.modules)\n{code}\nprint(json.dumps([*{{*sys.modules}} - known]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


#: A plugin marks its hooks, and whoever asks for the mark gets the library of hooks.
MARK = "hookimpl"


@pytest.mark.parametrize("names", [["PeftModel"], [name for name in public.ROOMS if name != MARK]], ids=["one", "all"])
def test_names_that_need_no_method_bring_no_more_than_torch_and_the_core(names: list[str]) -> None:
    brought = imported_by(f"from peftcore import {', '.join(names)}", after="import torch")
    assert packages(brought) == {"peftcore"}
    assert len(brought) < 120


def test_a_name_brings_only_what_it_needs() -> None:
    brought = imported_by("from peftcore import PeftModel", after="import torch")
    elsewhere = {"adapter_store", "auto", "exports", "functional", "hookspecs", "mappings", "plugin_status", "tasks"}
    assert brought.isdisjoint(f"peftcore.{room}" for room in elsewhere)


@pytest.mark.parametrize("code", ["import peftcore", "from peftcore import LayerConfig, PeftConfig, PeftType, option"])
def test_what_describes_no_layer_needs_no_torch(code: str) -> None:
    assert packages(imported_by(code)) <= {"peftcore", "typing_extensions"}


def test_the_first_method_that_is_named_brings_its_own_plugin_alone() -> None:
    from_plugins = {name for name in packages(imported_by("from peftcore import LoraConfig")) if "peftcore_" in name}
    assert from_plugins == {"peftcore_lora"}


def test_type_checkers_are_told_the_names_and_rooms_that_there_are() -> None:
    (block,) = (node for node in ast.parse(PUBLIC).body if isinstance(node, ast.If))
    told = {
        (alias.asname, str(node.module).removeprefix("peftcore."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname  # which exports it
    }
    assert told == set(public.ROOMS.items())


@pytest.mark.parametrize(("name", "room"), public.ROOMS.items())
def test_a_public_name_is_what_its_room_has(name: str, room: str) -> None:
    there = getattr(importlib.import_module(f"peftcore.{room}"), name)
    assert getattr(peftcore, name) is there
    assert getattr(public, name) is there
    assert name in dir(peftcore)


def test_a_star_import_brings_the_public_names_and_no_plugin() -> None:
    names: dict[str, object] = {}
    exec("from peftcore import *", names)
    assert names.keys() - {"__builtins__"} == set(public.ROOMS)


def test_the_public_room_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="NobodyHasThis"):
        _ = public.NobodyHasThis


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_goes_on_as_it_was(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ValueError, match="inside"), paused_collector():
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("name", ["PeftModel", "LoraConfig"])
def test_no_collection_falls_into_an_import(name: str) -> None:
    count = "import gc, torch; seen = []; gc.callbacks.append(lambda phase, info: seen.append(info['generation']))"
    brought = imported_by(f"from peftcore import {name}\nassert 2 not in seen, seen", after=count)
    assert brought
