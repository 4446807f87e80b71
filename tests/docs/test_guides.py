"""The pages for users: their Python runs in order, shows and raises what they say, and their commands work."""

import contextlib
import io
import re
import shlex
import warnings
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from importlib_metadata import metadata
from torch import nn
from typer.testing import CliRunner

from peftcore import exceptions, get_peft_model
from peftcore.catalog import catalog
from peftcore.cli.app import app
from peftcore.registry import registry

from .pages import DOCS, ROOT, Block, blocks, commands, is_shown

PAGES = [
    *(DOCS / f"{name}.md" for name in ("index", "quickstart", "concepts", "coming-from-hf-peft")),
    *sorted((DOCS / "guides").glob("*.md")),
]


def is_outcome(shown: str, outcome: str) -> bool:
    """Whether a page shows an outcome; lines may be broken elsewhere, and ``…`` stands for anything."""
    parts = (r"\s+".join(map(re.escape, part.split())) for part in shown.split("…"))
    return re.fullmatch(r"\s*" + r".*".join(rf"\s*{part}\s*" for part in parts) + r"\s*", outcome, re.S) is not None


class Reader:
    """Does what a page says, block by block: one Python session, in a folder of its own."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "page"}
        #: What the last Python block printed, warned of and raised.
        self.outcomes: list[str] = []

    def follow(self, page: list[Block]) -> None:
        """Follow a page.

        Raises:
            AssertionError: A block fails, or shows what does not come.
        """
        for number, block in enumerate(page):
            following = page[number + 1] if number + 1 < len(page) else None
            if block.language == "python":
                self._run(block.text, may_fail=following is not None and following.language == "text")
            elif block.language == "text":
                assert any(is_outcome(block.text, outcome) for outcome in self.outcomes), (block.text, self.outcomes)
                self.outcomes = []
            else:
                assert block.language == "console", f"nobody runs a block of {block.language}"
                for command, shown in commands(block.text):
                    self._type(command, shown)

    def _run(self, code: str, *, may_fail: bool) -> None:
        printed, error = io.StringIO(), ""
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            try:
                exec(compile(code, "page", "exec"), self.names)
            except Exception as failure:
                if not may_fail:
                    raise
                error = f"{type(failure).__name__}: {failure}"
        warned = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
        self.outcomes = [error] if error else [printed.getvalue(), *warned]

    def _type(self, command: str, shown: list[str]) -> None:
        program, *arguments = shlex.split(command, comments=True)
        if program == "pip":
            assert [name for name in arguments[1:] if name not in installable()] == []
        elif program == "peftcore":
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
            assert [line for line in shown if not is_shown(line, done.stdout)] == [], done.stdout
        else:
            assert f"$ {command}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def installable() -> set[str]:
    """Return what the pages may tell to install: the core, its extras, and the plugins of the project."""
    extras = metadata("peftcore").get_all("Provides-Extra") or ()
    return {"peftcore", *(f"peftcore[{extra}]" for extra in extras), *catalog.first_party().values()}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Reader().follow(blocks(text_of(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_looked_at_and_every_link_leads_somewhere(page: Path) -> None:
    text = text_of(page)
    assert len(re.findall(r"(?m)^ *```", text)) == 2 * len(blocks(text))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(text_of(target)), link


def anchors(text: str) -> set[str]:
    """Return the names of a page's headings, as the site and code hosts write them."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


# ------------------------------------------------------------------------------------------ troubleshooting


def quoted_errors() -> set[str]:
    """Return the classes of the errors that the page of errors shows."""
    shown = [
        block.text for block in blocks(text_of(DOCS / "guides" / "troubleshooting.md")) if block.language == "text"
    ]
    return {found[1] for text in shown if (found := re.match(r"(\w+(?:Error|Warning)): ", text))}


def test_each_error_that_a_user_can_meet_is_among_the_troubles() -> None:
    #: Met by authors of plugins, by those who install two that clash, at the command line, and by who serves models.
    of_others = {"PeftCoreError", "PluginError", "PluginLoadError", "PluginConflictError", "PluginDisabledError"}
    of_others |= {"RegistrationError", "NewPackageError", "BaseModelError", "OutputError", "AdapterStoreError"}
    ours = {name for name, value in vars(exceptions).items() if isinstance(value, type)}
    assert ours - of_others - quoted_errors() == set()


# ------------------------------------------------------------------------------------- choosing a method


def methods_in_row(start: str) -> list[str]:
    """Return the methods that a row of the page on choosing names."""
    (row,) = re.findall(rf"(?m)^\| {start}.*$", text_of(DOCS / "guides" / "choosing-a-method.md"))
    return re.findall(r"\[`(\w+)`\]", row)


@pytest.mark.parametrize("method", methods_in_row("can't be merged"))
def test_what_the_page_says_to_be_unmergeable_is(method: str) -> None:
    adapter_cls = registry[method].adapter_cls
    assert adapter_cls is not None and not adapter_cls.mergeable


@pytest.mark.parametrize("method", methods_in_row("start with an effect"))
def test_what_the_page_says_to_start_with_an_effect_does(method: str) -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(256, 256)), torch.randn(2, 256)
    frozen = base(x)
    assert not torch.equal(get_peft_model(base, method, target_modules=["0"])(x), frozen)


@pytest.mark.parametrize("method", methods_in_row("the adapter must be tiny"))
def test_what_the_page_says_to_be_tiny_is(method: str) -> None:
    base = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256))
    options = {"target_modules": ["1" if method == "ln_tuning" else "0"]}
    assert get_peft_model(base, method, **options).get_nb_trainable_parameters()[0] <= 2 * 256


# ---------------------------------------------------------------------------------------------- the drawing


def test_the_drawing_needs_nothing_from_elsewhere() -> None:
    (name,) = re.findall(r"!\[[^\]]+\]\((assets/[\w-]+\.svg)\)", text_of(DOCS / "concepts.md"))
    drawing = xml.etree.ElementTree.parse(DOCS / name).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"href|url\(|@import|<script", text_of(DOCS / name).replace("url(#arrow)", ""))
    assert [element.text for element in drawing if element.tag.endswith("title")]


# ------------------------------------------------------------------------------------- what reads the pages


def test_what_the_page_shows_and_is_not_so_is_found() -> None:
    with pytest.raises(AssertionError):
        Reader().follow([Block("python", None, "print(1)"), Block("text", None, "2\n")])
    with pytest.raises(AssertionError):
        Reader().follow([Block("python", None, "print(1)"), Block("text", None, "1\n2\n")])
    with pytest.raises(AssertionError):
        Reader().follow([Block("python", None, "int('x')"), Block("text", None, "ValueError: another\n")])
    with pytest.raises(AssertionError):
        Reader().follow([Block("console", None, "$ pip install pfetcore\n")])
    with pytest.raises(AssertionError):
        Reader().follow([Block("console", None, "$ peftcore mehtods\n")])


def test_an_error_that_the_page_does_not_show_stops_it() -> None:
    with pytest.raises(ZeroDivisionError):
        Reader().follow([Block("python", None, "1 / 0"), Block("python", None, "")])


def test_lines_may_be_broken_elsewhere_and_an_ellipsis_stands_for_anything() -> None:
    assert is_outcome("one\ntwo … five", "one two\nthree four five\n")
    assert not is_outcome("one two", "one two three")
