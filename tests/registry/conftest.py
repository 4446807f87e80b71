"""Fake distributions: folders that look to Python as if somebody had installed a plugin."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import importlib_metadata
import pytest

from peftcore.adapters.base import Adapter
from peftcore.catalog import Catalog
from peftcore.config import LayerConfig
from peftcore.method import PeftMethod
from peftcore.registry import Registry

DISTRIBUTIONS = Path(__file__).parent / "distributions"
PROJECT = Path(__file__).parents[2]


def entry_points_in(paths):
    """Return the entry points of the distributions in some folders, and of no others."""
    found = importlib_metadata.distributions(path=[str(path) for path in paths])
    return [entry_point for distribution in found for entry_point in distribution.entry_points]


class Environment:
    """A set of installed distributions with a registry of its own; calling it installs more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self.environ: dict[str, str] = {}
        self.scans = 0
        self._monkeypatch = monkeypatch
        self.registry = Registry(Catalog(self._find, self.environ))

    def _find(self):
        self.scans += 1
        return entry_points_in(self.paths)

    def install(self, *names: str | Path) -> Registry:
        for name in names:
            path = DISTRIBUTIONS / name
            assert path.is_dir()
            self.paths.append(path)
            self._monkeypatch.syspath_prepend(str(path))
        return self.registry


@pytest.fixture
def environment(monkeypatch):
    before = set(sys.modules)
    yield Environment(monkeypatch)
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


@pytest.fixture
def make_distribution(tmp_path) -> Callable[..., Path]:
    """Write a distribution with one module into a folder, and return the folder."""

    def make(name: str, source: str, entry_points: str, version: str = "1.0", folder: str = "made") -> Path:
        path = tmp_path / folder
        info = path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        (path / f"{name.replace('-', '_')}.py").write_text(source)
        return path

    return make


METHOD_SOURCE = """
from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod

{preamble}

class SomeConfig(LayerConfig, method="{name}"):
    pass

class SomeAdapter(Adapter):
    pass

@hookimpl
def register_peft_method():
    return PeftMethod(name="{name}", config_cls=SomeConfig, adapter_cls=SomeAdapter, {fields})
"""


@pytest.fixture
def method_source() -> Callable[..., str]:
    """Return the source of a plugin module with one method."""

    def source(name: str, preamble: str = "", fields: str = "") -> str:
        return METHOD_SOURCE.format(name=name, preamble=preamble, fields=fields)

    return source


def take_snapshot(registry):
    """Everything that a registration could leave behind."""
    manager = registry._manager
    hooks = vars(manager.hook)
    return (
        registry.catalog.names(),
        dict(registry._installed),
        dict(registry._in_process),
        dict(registry._plugins),
        set(manager.get_plugins()),
        {name: len(caller.get_hookimpls()) for name, caller in hooks.items() if hasattr(caller, "get_hookimpls")},
        {name for name in sys.modules if name.startswith("fake_")},
    )


@pytest.fixture
def snapshot() -> Callable[[Registry], object]:
    return take_snapshot


class SomeAdapter(Adapter):
    """Does nothing."""


def make_method(name: str, **fields: object) -> PeftMethod:
    """Make a method as a notebook would."""

    class SomeConfig(LayerConfig, method=name):
        """The options of the method."""

    return PeftMethod(**{"name": name, "config_cls": SomeConfig, "adapter_cls": SomeAdapter, **fields})


@pytest.fixture(name="make_method")
def make_method_fixture() -> Callable[..., PeftMethod]:
    return make_method


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run code in a fresh interpreter where some of the fake distributions are installed; return what it prints."""

    def run(code: str, *names: str | Path, **environ: str) -> str:
        paths = [str(PROJECT), *(str(DISTRIBUTIONS / name) for name in names)]
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
