"""The rules of the house: which module may import which, and what every folder looks like."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "peftcore"
CORE_FILES = sorted(CORE.rglob("*.py"))
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml") if path.parent.name != "peftcore-all")
PLUGIN_FILES = sorted(path for plugin in PLUGINS for path in plugin.glob("peftcore_*/**/*.py"))


def rooms() -> list[str]:
    """Reads the list of docs/architecture.md: a room imports only from itself and from the rooms before it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```rooms\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line.split()[0] for line in block.splitlines()]


ROOMS = rooms()


def room_of(file: Path) -> str:
    return file.relative_to(CORE).with_suffix("").parts[0]


def rooms_imported(tree: ast.AST) -> Iterator[str]:
    """Yields the room of every import from the core, those inside functions and for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            # `from peftcore import config` imports a room, `from peftcore import PeftConfig` the package itself.
            names = (
                [f"peftcore.{alias.name}" for alias in node.names] if node.module == "peftcore" else [node.module or ""]
            )
        else:
            continue
        for top, _, rest in (name.partition(".") for name in names):
            if top == "peftcore":
                room = rest.partition(".")[0]
                yield room if room in ROOMS else "__init__"


def test_the_architecture_page_lists_every_room_and_no_other() -> None:
    assert sorted(ROOMS) == sorted({room_of(file) for file in CORE_FILES})


@pytest.mark.parametrize("file", CORE_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_the_list_only(file: Path) -> None:
    here = ROOMS.index(room_of(file))
    imported = set(rooms_imported(ast.parse(file.read_text(encoding="utf-8"))))
    assert {room for room in imported if ROOMS.index(room) > here} == set()


def without_docstrings(source: str) -> str:
    """Returns the source's tokens, comments included and docstrings left out, one on a line."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, documented) and node.body]
    # A bare string is a docstring wherever it stands: below an attribute, too.
    strings = [item for body in bodies for item in body if isinstance(item, ast.Expr) and is_string(item.value)]
    starts = {(item.lineno, item.col_offset) for item in strings}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.start not in starts)


def is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def words(text: str) -> set[str]:
    """Splits identifiers at underscores and at capitals: `LoraConfig` and `lora_A` both hold the word `lora`."""
    whole = re.findall(r"[A-Za-z0-9]+", text)
    parts = [part for word in whole for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", word)]
    return {word.lower() for word in whole + parts}


def method_names() -> set[str]:
    return {plugin.name.removeprefix("peftcore-") for plugin in PLUGINS}


def names_method(source: str, name: str) -> bool:
    first, *more = name.split("-")
    text = without_docstrings(source)
    return re.search("[-_ ]?".join([first, *more]), text, re.IGNORECASE) is not None if more else first in words(text)


def test_the_search_for_method_names_finds_them_in_code_and_comments_but_not_in_docstrings() -> None:
    assert all(names_method(code, "lora") for code in ("LoraConfig", "x.lora_A", "LORA", "# for LoRA", "f('lora')"))
    assert not names_method('def f():\n    """For LoRA, say."""\n    exploration = 1', "lora")
    assert names_method("PREFIX_TUNING", "prefix-tuning") and names_method("PrefixTuning()", "prefix-tuning")


@pytest.mark.parametrize("file", CORE_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_names_no_method(file: Path) -> None:
    # What any method may train beside itself has this name in files, which is a method's too.
    source = file.read_text(encoding="utf-8").replace("trainable_tokens_delta", "rows")
    assert {name for name in method_names() if names_method(source, name)} == set()


def test_importing_the_core_imports_no_plugin_and_nothing_heavy() -> None:
    code = "import sys, peftcore; peftcore.PeftModel; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "peftcore" in imported
    heavy = {"transformers", "accelerate", "rich", "typer", "huggingface_hub"}
    assert imported & (heavy | {plugin.name.replace("-", "_") for plugin in PLUGINS}) == set()


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_plugin_has_the_same_shape(plugin: Path) -> None:
    package = plugin.name.replace("-", "_")
    wanted = ["pyproject.toml", "README.md", "LICENSE", f"{package}/__init__.py", f"{package}/py.typed"]
    assert [name for name in wanted if not (plugin / name).is_file()] == []
    assert list(plugin.glob("tests/test_*.py")), "a plugin has tests"
    assert not list(plugin.glob("tests/**/__init__.py")), "test folders are no packages"


def test_no_module_is_called_util() -> None:
    assert [path for path in (*CORE_FILES, *PLUGIN_FILES) if re.match("_*utils?", path.stem)] == []


def test_no_file_of_the_core_is_longer_than_400_lines() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in CORE_FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    """Yields what could run code from a file: pickle's relatives, and `torch.load` without `weights_only=True`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}.intersection(modules)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "load"}:
            safe = {keyword.arg for keyword in node.keywords if ast.unparse(keyword.value) == "True"}
            if "weights_only" not in safe:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("code", ["torch.load(path)", "torch.load(path, weights_only=False)", "import pickle"])
def test_the_search_for_unsafe_loads_finds_them(code: str) -> None:
    assert list(unsafe_loads(ast.parse(code)))


@pytest.mark.parametrize("file", [*CORE_FILES, *PLUGIN_FILES], ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_read_as_data_only(file: Path) -> None:
    assert list(unsafe_loads(ast.parse(file.read_text(encoding="utf-8")))) == []
