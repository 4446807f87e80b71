"""Views: what objects show of themselves, as text, as HTML in a notebook, and by rich in a terminal.

An object that derives from :class:`Viewed` says once what there is to see, as a :class:`View`: a title, a table, notes.
Texts may come from files of strangers, so nothing in them is taken for markup or for a terminal's commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = tuple[str, ...]

#: Cells of columns with none that is longer are broken over lines only if the terminal is narrower than that.
_WHOLE = 32


@dataclass(frozen=True)
class View:
    """A table with a title and notes.

    Attributes:
        title: One line.
        columns: Heads of the table; no table without.
        rows: Its cells.
        notes: What stands below it, each on lines of its own.
        facts: What stands above it: names, and what is to be said of them.
    """

    title: str
    columns: Row = ()
    rows: Sequence[Row] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return plain text, as wide as it needs."""
        return "\n".join(
            [printable(self.title), *self._text_facts(), *self._text_table(), *map(_printable_lines, self.notes)]
        )

    def _text_facts(self) -> list[str]:
        width = max(map(len, self.facts), default=0)
        return [f"  {name.ljust(width)}  {printable(fact)}" for name, fact in self.facts.items()]

    def _text_table(self) -> list[str]:
        if not self.rows:
            return []
        table = [self.columns, *(tuple(map(printable, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        right = self.numeric()
        return [
            "  " + "  ".join(_padded(*cell) for cell in zip(row, widths, right, strict=True)).rstrip() for row in table
        ]

    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers, which stand at its right; the first holds names."""
        return [n > 0 and all(_is_number(row[n]) for row in self.rows) for n in range(len(self.columns))]

    def html(self) -> str:
        """Return what a notebook shows."""
        parts = [f"<p><b>{_escaped(self.title)}</b></p>"]
        if self.facts:
            body = "".join(_html_row("td", fact, (False, False)) for fact in self.facts.items())
            parts.append(f"<table><tbody>{body}</tbody></table>")
        if self.rows:
            right = self.numeric()
            heads = _html_row("th", self.columns, right)
            body = "".join(_html_row("td", row, right) for row in self.rows)
            parts.append(f"<table><thead>{heads}</thead><tbody>{body}</tbody></table>")
        parts += [f'<p style="white-space: pre-wrap">{_escaped(note)}</p>' for note in self.notes]
        return f"<div>{''.join(parts)}</div>"

    def rich(self) -> Any:
        """Return what rich prints; needs rich."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(printable(self.title), style="bold")]
        if self.facts:
            facts = Table.grid(padding=(0, 2))
            facts.add_column(style="dim", no_wrap=True)
            facts.add_column(overflow="fold")
            for name, fact in self.facts.items():
                facts.add_row(Text(f"  {name}"), Text(printable(fact)))
            parts.append(facts)
        if self.rows:
            table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            for place, (column, right) in enumerate(zip(self.columns, self.numeric(), strict=True)):
                # Where room is short, long texts are broken before names are.
                short = max(len(row[place]) for row in self.rows) <= _WHOLE
                side: Any = "right" if right else "left"
                table.add_column(Text(column), justify=side, overflow="fold", no_wrap=short)
            for row in self.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            parts.append(table)
        return Group(*parts, *(Text(_printable_lines(note)) for note in self.notes))


class Viewed:
    """Shows itself by its :meth:`view`: in ``repr``, in a notebook, and printed by rich."""

    def view(self) -> View:
        """Return what there is to see."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self.view())

    def _repr_html_(self) -> str:
        return self.view().html()

    def __rich__(self) -> Any:
        return self.view().rich()


def printable(text: str) -> str:
    """Return a text with everything that is no visible character written as its escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _escaped(text: str) -> str:
    import html  # its table of entities takes as long to read as a room of the core

    return html.escape(_printable_lines(text))


def _html_row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    styles = ("text-align: right" if on_right else "text-align: left; white-space: pre-wrap" for on_right in right)
    written = (f'<{tag} style="{style}">{_escaped(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True))
    return f"<tr>{''.join(written)}</tr>"


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _is_number(cell: str) -> bool:
    return cell in ("", "–") or (cell[0].isdigit() and not set(cell[1:]) - set("0123456789,.e-+%"))


def number(value: int) -> str:
    """Write a number with its thousands apart."""
    return f"{value:,d}"


def share(part: int, whole: int) -> str:
    """Write a part of a whole in percent."""
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def tree(leaves: Mapping[str, Row]) -> list[Row]:
    """Return rows whose first cells draw dotted paths as a tree.

    Args:
        leaves: By path: the cells behind it. A path that only leads to others gets empty ones.
    """
    root: dict[str, Any] = {}
    for path in leaves:
        node = root
        for name in path.split("."):
            node = node.setdefault(name, {})
    width = max((len(cells) for cells in leaves.values()), default=0)
    return list(_branches(root, "", "", leaves, ("",) * width))


def _branches(node: Mapping[str, Any], path: str, margin: str, leaves: Mapping[str, Row], empty: Row) -> Iterable[Row]:
    for position, (name, below) in enumerate(node.items(), 1):
        here, label = f"{path}.{name}" if path else name, name
        # What only leads to one other stands on one line with it.
        while len(below) == 1 and here not in leaves:
            ((name, below),) = below.items()
            here, label = f"{here}.{name}", f"{label}.{name}"
        last = position == len(node)
        first = not path
        yield (margin + ("" if first else "└ " if last else "├ ") + label, *leaves.get(here, empty))
        yield from _branches(below, here, margin + ("" if first else "  " if last else "│ "), leaves, empty)
