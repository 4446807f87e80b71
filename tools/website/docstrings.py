"""Docstrings as the API reference shows them: an extension of griffe, which mkdocstrings reads the sources with.

The sources' docstrings mark names by roles (``:class:`~package.Name` ``) and examples by a double colon; Markdown has
neither. Fields of configs are described by the second argument of ``option``, and other attributes by the comment above
them (``#:``).
"""

import ast
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([^`]+)`")
_COMMENT = re.compile(r"\s*#:")
_LITERAL = re.compile(r"^(?P<indent> *)(?P<said>\S.*|)::\n\n(?P<code>(?:(?P=indent) {4}.*\n?|\s*\n)+)", re.MULTILINE)


def name(role: re.Match[str]) -> str:
    """Returns a role as code, which is a link where the reference has the name."""
    path = role[2].removesuffix("()")
    shown = path.rpartition(".")[2] if role[1] else path
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>' if "." in path else f"`{shown}`"


def example(literal: re.Match[str]) -> str:
    """Returns what follows a double colon as a block of Python."""
    code = textwrap.dedent(literal["code"]).strip("\n")
    block = f"{literal['said']}:\n\n```python\n{code}\n```\n\n"
    return textwrap.indent(block, literal["indent"], lambda line: bool(line.strip()))


def as_markdown(docstring: str) -> str:
    return _ROLE.sub(name, _LITERAL.sub(example, docstring + "\n")).rstrip("\n")


def option(value: griffe.Expr | str | None) -> tuple[griffe.Expr | str, str] | None:
    """Returns the default and the meaning of a field that ``option(default, meaning, ...)`` declares."""
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "option" or len(value.arguments) < 2:
        return None
    default, meaning = value.arguments[:2]
    return default, str(ast.literal_eval(str(meaning)))


def comment(attribute: griffe.Attribute) -> str:
    """Returns what stands above an attribute in lines that start with ``#:``."""
    path = attribute.filepath
    if attribute.lineno is None or not isinstance(path, Path):
        return ""
    above = reversed(attribute.lines_collection[path][: attribute.lineno - 1])
    lines = [line.strip()[2:].strip() for line in itertools.takewhile(_COMMENT.match, above)]
    return "\n".join(reversed(lines))


class Docstrings(griffe.Extension):
    """Rewrites every docstring when it has been read, and writes those that stand elsewhere."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        said = comment(attr)
        if (declared := option(attr.value)) is not None:
            attr.value, said = declared
        if attr.docstring is None and said:
            attr.docstring = griffe.Docstring(as_markdown(said), parent=attr)

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_alias_instance(self, *, alias: griffe.Alias, **kwargs: Any) -> None:
        """Lets names that :mod:`peftcore.public` imports for type checkers alone count as the package's names."""
        if alias.parent is not None and alias.parent.path == "peftcore.public":
            alias.runtime = True
