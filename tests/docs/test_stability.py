"""docs/stability.md: what it lists is there, what the project tells authors to use is listed, and old plugins load."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from peftcore import exceptions, hookspecs
from peftcore.cli.new import FAMILIES, write_package

from .pages import DOCS, ROOT, blocks

PAGE = (DOCS / "stability.md").read_text(encoding="utf-8")
OLDEST = Path(__file__).parent / "distributions" / "written_for_0_1"


def rows(section: str) -> list[list[list[str]]]:
    """Return the table of a section: of each cell, the names in code spans, or the text if there are none."""
    (text,) = re.findall(rf"(?ms)^### {section}\n(.*?)(?=^#|\Z)", PAGE)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")] for line in lines]


def listed_names() -> dict[str, set[str]]:
    """Return the promised names by module."""
    found = {}
    for (module,), names in rows("Names"):
        if names == ["__all__"]:
            names = list(importlib.import_module(module).__all__)
        elif not names:
            assert module == "peftcore.exceptions"
            names = [name for name, value in vars(exceptions).items() if inspect.isclass(value)]
        found[module] = set(names)
    return found


NAMES = listed_names()
MEMBERS = [(found[0][0], found[1], found[2]) for found in rows("Members")]


@pytest.mark.parametrize("module", NAMES)
def test_promised_names_exist(module: str) -> None:
    there = importlib.import_module(module)
    assert {name for name in NAMES[module] if not hasattr(there, name)} == set()
    assert NAMES[module]


def class_of(path: str) -> type:
    module, _, name = path.rpartition(".")
    assert name in NAMES[module], f"{path} is not among the names"
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def members(cls: type) -> set[str]:
    """Return what a class has, and what its annotations and its constructors promise its instances."""
    found = set(dir(cls))
    for base in cls.__mro__:
        found |= set(vars(base).get("__annotations__", {}))
        if base.__module__.startswith("peftcore") and "__init__" in vars(base) and not is_dataclass(base):
            found |= set(re.findall(r"self\.(\w+)(?:: .+)? = ", inspect.getsource(base.__init__)))
    return found


@pytest.mark.parametrize(("path", "written", "offered"), MEMBERS, ids=[path for path, _, _ in MEMBERS])
def test_promised_members_exist_and_no_more_is_asked_for(path: str, written: list[str], offered: list[str]) -> None:
    cls = class_of(path)
    assert {name for name in (*written, *offered) if name not in members(cls)} == set()
    abstract = {name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)}
    assert abstract <= set(written)


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of everything that is imported from the core."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "peftcore":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            assert all(alias.name == "peftcore" for alias in node.names if alias.name.startswith("peftcore"))


def unlisted(source: str) -> set[tuple[str, str]]:
    return {(module, name) for module, name in imports(source) if name not in NAMES.get(module, ())}


#: What only tests of a plugin use.
FOR_TESTS = {("peftcore.testing.models", "gpt2")}


def test_new_packages_use_promised_names_alone(tmp_path: Path) -> None:
    for family in FAMILIES:
        for file in write_package("brand_new", family, directory=tmp_path / family):
            if file.suffix == ".py":
                assert unlisted(file.read_text(encoding="utf-8")) - FOR_TESTS == set(), file.name


def test_pages_for_authors_use_promised_names_alone() -> None:
    for page in ("writing-a-plugin.md", "hooks.md"):
        for block in blocks((DOCS / page).read_text(encoding="utf-8")):
            if block.language == "python" and "import" in block.text:
                assert unlisted(block.text) == set(), (page, block.title)


def test_examples_use_promised_names_alone() -> None:
    files = [*ROOT.glob("examples/plugins/**/*.py"), *OLDEST.glob("*.py")]
    assert len(files) > 5
    assert {file.name: names for file in files if (names := unlisted(file.read_text(encoding="utf-8")))} == {}


def test_the_dependency_on_the_page_is_the_one_that_new_packages_have(tmp_path: Path) -> None:
    write_package("brand_new", directory=tmp_path / "package")
    (block,) = (block for block in blocks(PAGE) if block.language == "toml")
    assert block.text in (tmp_path / "package" / "pyproject.toml").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- an old plugin

USE = """
import sys, tempfile, warnings
import torch
from torch import nn
import peftcore
from peftcore.registry import registry

x = torch.randn(3, 6)
for name in [name for name in registry.catalog.names() if name.startswith("old_")]:
    method = registry[name]
    if method.encoder_cls is not None:
        continue
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 4))
    state = {key: value.clone() for key, value in base.state_dict().items()}
    frozen = base(x)
    model = peftcore.get_peft_model(base, method.config_cls(target_modules=["0"]))
    assert torch.allclose(model(x), frozen), name
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model.update_and_allocate(2)
    expected = model(x)
    assert not torch.allclose(expected, frozen), name
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        other = nn.Sequential(nn.Linear(6, 4))
        other.load_state_dict(state)
        assert torch.equal(peftcore.PeftModel.from_pretrained(other, folder)(x), expected), name
    if method.adapter_cls.mergeable:
        assert torch.allclose(model.merge_and_unload()(x), expected, atol=1e-5), name

registry.default_target_modules("old_delta", "other")
registry.register_commands(None)
import written_for_0_1
print(*sorted(set(written_for_0_1.seen)))
print([status for status in registry.status() if status.distribution == "written-for-0-1"][0].state)

from peftcore.testing.models import gpt2
model = peftcore.get_peft_model(gpt2(), written_for_0_1.PromptsConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
model(input_ids=torch.arange(8).reshape(2, 4)).logits.sum().backward()
print(model.base_model.prompt_encoder is not None)
"""


def test_a_plugin_written_for_the_oldest_promised_version_loads_and_works(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(OLDEST), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called, state, prompts = done.stdout.splitlines()
    hooks = {name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "peftcore_spec")}
    assert set(called.split()) == hooks - {"register_peft_method"}
    assert (state, prompts) == ("loaded", "True")
    (metadata,) = OLDEST.glob("*.dist-info/METADATA")
    (oldest,) = re.findall(r"oldest version that is still promised, ([\d.]+),", PAGE)
    assert f"Requires-Dist: peftcore>={oldest}\n" in metadata.read_text()
