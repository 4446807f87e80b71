"""Adapters merged into many layers at once: into all of them, or into none."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.adapted_layer import AdaptedLayer
from peftcore.progress import progress


def merge_into_all(
    layers: Sequence[AdaptedLayer], names: Sequence[str], safe_merge: bool = False, progressbar: bool = False
) -> None:
    """Fold adapters into the weights of layers; if one layer refuses, all are as before.

    Args:
        layers: The layers.
        names: The adapters, in order.
        safe_merge: Refuse weights that would not be finite.
        progressbar: Show the progress from the start; else it is shown where it takes long on a terminal.

    Raises:
        MergeError, NotMergeableError: See :meth:`peftcore.adapted_layer.AdaptedLayer.merge`.
    """
    done: list[tuple[AdaptedLayer, list[str]]] = []
    try:
        for layer in progress(layers, "Merging", at_once=progressbar):
            done.append((layer, layer.merged_adapters))
            layer.merge(names, safe_merge)
    except Exception:
        for layer, before in reversed(done):
            if layer.merged_adapters != before:
                layer.unmerge()
                layer.merge_again(before)
        raise
