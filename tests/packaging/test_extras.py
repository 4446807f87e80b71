"""The core's extras and peftcore-all follow from the folders in plugins/."""

import importlib.metadata
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generate() -> Callable[..., None]:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "generate_extras.py"))
    main: Callable[..., None] = script["main"]
    return main


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of all the files that the generator reads and writes."""
    for source in [ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("plugins/*/pyproject.toml")]:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return tmp_path


def test_the_generated_files_are_current(generate: Callable[..., None]) -> None:
    generate(["--check"])


def test_a_new_plugin_gets_an_extra_a_dependency_and_a_license(generate: Callable[..., None], copy: Path) -> None:
    (copy / "plugins" / "peftcore-new").mkdir()
    shutil.copy(copy / "plugins" / "peftcore-lora" / "pyproject.toml", copy / "plugins" / "peftcore-new")
    with pytest.raises(SystemExit, match=r"plugins/peftcore-all/pyproject.toml.*pyproject.toml.*generate_extras"):
        generate(["--check"], copy)

    generate([], copy)

    generate(["--check"], copy)
    assert '\nnew = ["peftcore-new"]\n' in (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert '"peftcore-new",\n' in (copy / "plugins" / "peftcore-all" / "pyproject.toml").read_text(encoding="utf-8")
    assert (copy / "plugins" / "peftcore-new" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_lost_markers_are_an_error_that_names_the_file(generate: Callable[..., None], copy: Path) -> None:
    core = copy / "pyproject.toml"
    core.write_text(core.read_text(encoding="utf-8").replace("# end of the generated lines", ""), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"pyproject\.toml has 0 pairs of markers"):
        generate([], copy)


def test_the_metadata_list_one_extra_for_each_plugin() -> None:
    listed = importlib.metadata.requires("peftcore") or []
    plugins = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    extras = {line.replace("'", '"') for line in listed if line.startswith("peftcore-")}
    assert extras == {f'{name}; extra == "{name.removeprefix("peftcore-")}"' for name in plugins}
