"""docs/methods.md follows from the plugins; its lengths count code alone."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .small_configs import PLUGINS, first_party_methods

ROOT = PLUGINS.parent


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "generate_methods.py"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of all the files that the generator reads and writes."""
    shutil.copytree(PLUGINS, tmp_path / "plugins", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    shutil.copy(ROOT / "requirements-dev.txt", tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path


SOURCE = '''\
"""A docstring
of two lines."""  # beside it, a comment

import os  # a line


class A:
    """A docstring."""

    # A comment.
    text = """A string

    that is none."""  # two lines, since one is blank

    def f(
        self,
    ):
        "A docstring."
        """no docstring, since it is the second"""
        return f"""{
            os
        }"""
'''


def test_lines_are_counted_without_docstrings_comments_and_blank_lines(tool: dict[str, Any]) -> None:
    code_lines: Callable[[str], int] = tool["code_lines"]
    assert code_lines(SOURCE) == len(["import", "class", "text", "that", "def", "self", "):", "no", "f", "os", "}"])
    assert code_lines("") == code_lines("# nothing\n") == code_lines('"""nothing"""\n') == 0


def test_the_page_has_every_method(tool: dict[str, Any]) -> None:
    methods = first_party_methods()
    rows = [line for line in tool["page"](ROOT).splitlines() if line.startswith("| [`")]
    assert sorted(row.split("`")[1] for row in rows) == methods


def test_a_page_that_is_not_current_is_named_and_written(tool: dict[str, Any], copy: Path) -> None:
    with pytest.raises(SystemExit, match=r"docs/methods\.md.*generate_methods"):
        tool["main"](["--check"], copy)
    tool["main"]([], copy)
    tool["main"](["--check"], copy)

    longer = copy / "plugins" / "peftcore-lora" / "peftcore_lora" / "__init__.py"
    longer.write_text(longer.read_text(encoding="utf-8") + "more = 1\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="Not current"):
        tool["main"](["--check"], copy)


def test_a_plugin_that_is_not_installed_is_named(tool: dict[str, Any], copy: Path) -> None:
    shutil.copytree(copy / "plugins" / "peftcore-lora", copy / "plugins" / "peftcore-new")
    with pytest.raises(SystemExit, match="Not installed: peftcore-new"):
        tool["main"](["--check"], copy)


def test_another_version_of_the_other_library_is_named(tool: dict[str, Any], copy: Path) -> None:
    (copy / "requirements-dev.txt").write_text("peft==0.0.1\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"needs peft==0\.0\.1"):
        tool["main"](["--check"], copy)
