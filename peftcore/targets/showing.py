"""A report of targets as people see it: a tree in which layers that are alike stand once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftcore.targets.names import folded_indices
from peftcore.views import Row, View, number, tree


def target_view(
    title: str,
    matched: Sequence[Any],
    failed: Sequence[str],
    trainable: Mapping[str, int] | None = None,
) -> View:
    """Return the view of what a config asks for.

    Args:
        title: The config's field, and how many modules it means.
        matched: The matches.
        failed: What is wrong, a text each.
        trainable: By dotted path: how many parameters train there; adds a column.
    """
    columns: Row = ("module", "asked for by", "layer", "weight")
    leaves = dict(_leaves(matched, trainable))
    return View(title, columns if trainable is None else (*columns, "trainable"), tree(leaves), failed)


def _leaves(matched: Sequence[Any], trainable: Mapping[str, int] | None) -> Iterable[tuple[str, Row]]:
    alike: dict[tuple[str, Row], list[Any]] = {}
    for match in matched:
        cells: Row = (repr(match.pattern), _layer(match.module, match.layer), _weight(match.layer))
        path = match.path + (f" ({', '.join(match.parts)})" if match.parts else "")
        alike.setdefault((folded_indices(path), cells), []).append(match)
    templates = [template for template, _ in alike]
    for (template, told), same in alike.items():
        # Several groups of one template, with other shapes or patterns each, have to be told apart.
        common = template if templates.count(template) == 1 else f"{same[0].path} …"
        label = same[0].path if len(same) == 1 else f"{common} (x{len(same)})"
        count: Row = () if trainable is None else (number(sum(trainable.get(match.path, 0) for match in same)),)
        yield label, (*told, *count)


def _layer(module: nn.Module, layer: Any) -> str:
    name, kind = type(module).__name__, getattr(layer, "kind", "")
    return name if kind == name.lower() or not kind else f"{name} ({kind})"


def _weight(layer: Any) -> str:
    try:
        return " × ".join(map(str, layer.weight_shape))
    except (AttributeError, NotImplementedError):
        return ""  # a view without a weight: a whole module
