"""The checks of the conformance kit, in tables, where a page asks for them: ``<!-- checks of LayerMethodTests -->``.

A hook of mkdocs. What a check asks is the first line of its docstring.
"""

import inspect
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

import peftcore.testing

_MARK = re.compile(r"<!-- checks of (\w+) -->")


def checks_of(cls: type) -> Iterator[tuple[str, str]]:
    """Yields each check that a class itself has, and what it asks."""
    for name, check in vars(cls).items():
        if name.startswith("test_"):
            said = inspect.getdoc(check)
            if not said:
                raise PluginError(f"{cls.__name__}.{name} does not say what it asks.")
            yield name, said


def tables(name: str) -> str:
    """Returns the checks that a suite itself has, or else those of each class that it is made of, in sections."""
    suite = getattr(peftcore.testing, name)
    if dict(checks_of(suite)):
        return table(suite)
    return "\n".join(section(cls) for cls in suite.__mro__ if dict(checks_of(cls)))


def section(cls: type) -> str:
    return f"### {cls.__name__}\n\n{code_spans(inspect.getdoc(cls) or '')}\n\n{table(cls)}"


def table(cls: type) -> str:
    rows = (f"| `{name}` | {code_spans(said)} |\n" for name, said in checks_of(cls))
    return "".join(["| check | what it asks |\n| --- | --- |\n", *rows])


def code_spans(docstring: str) -> str:
    """Returns a docstring's first paragraph on one line, as Markdown."""
    return docstring.partition("\n\n")[0].replace("\n", " ").replace("``", "`")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the tables where the page asks for them."""
    return _MARK.sub(lambda mark: tables(mark[1]), markdown)
