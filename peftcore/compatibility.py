"""Which adapters can be active together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from peftcore.adapted_layer import AdaptedLayer
from peftcore.exceptions import CompositionError
from peftcore.tuner import Tuner


def check_together(tuners: Sequence[Tuner], layers: Iterable[AdaptedLayer]) -> None:
    """Check that adapters can be active together.

    Args:
        tuners: The adapters.
        layers: The layers on which any of them stands.

    Raises:
        CompositionError: Two exclude each other.
    """
    methods = {tuner.method.name: tuner.method for tuner in tuners}
    alone = [method.name for method in methods.values() if not method.is_mixed_compatible]
    if alone and len(methods) > 1:
        raise CompositionError(
            f"Method {alone[0]!r} can't be active together with {', '.join(sorted(set(methods) - {alone[0]}))}."
        )
    names = [tuner.name for tuner in tuners]
    for layer in layers if len(names) > 1 else ():
        layer.check_together(names)
    _check_replaced(tuners)


def _check_replaced(tuners: Sequence[Tuner]) -> None:
    """Refuse adapters of which one trains a copy of a module inside which another acts: it would act on nothing."""
    placements = [(tuner.name, placement) for tuner in tuners for placement in tuner.placements]
    whole = {p.path: name for name, p in placements if p.adapter.replaces_layer}
    for name, placement in placements if whole else ():
        parts = placement.path.split(".")
        outside = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        over = next((path for path in outside if whole.get(path, name) != name), None)
        if over is not None:
            raise CompositionError(
                f"Adapter {whole[over]!r} trains a copy of the whole of {over}, so {name!r} can't act on "
                f"{placement.path} inside it. Activate one of them."
            )
