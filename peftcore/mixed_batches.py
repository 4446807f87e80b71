"""Mixed batches: one call on a model in which each row has its own adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peftcore.adapted_model import AdaptedModel
from peftcore.call_state import BASE, Rows
from peftcore.exceptions import MixedBatchError


@contextmanager
def assigned_rows(host: AdaptedModel, names: Sequence[str], *, generating: bool = False) -> Iterator[Rows]:
    """Give each row its adapter while the block runs, whatever sizes the rows have inside the model.

    Args:
        host: The adapted model.
        names: One adapter's name per row, ``"__base__"`` for none.
        generating: Whether the model may repeat rows, as it does for beams.

    Raises:
        MixedBatchError: The names do not fit the batch or the model.
    """
    _check_names(host, names)
    rows = Rows(names, repeated=generating)
    hook = host.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.expect(args, kwargs), with_kwargs=True, prepend=True
    )
    try:
        with host.call_state.assigned(rows):
            yield rows
    finally:
        hook.remove()


def _check_names(host: AdaptedModel, names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise MixedBatchError(f"adapter_names must be a list with one name per row, got the string {names!r}.")
    known = [BASE, *host.tuners]
    unknown = sorted({str(name) for name in names} - set(known))
    if unknown:
        raise MixedBatchError(
            f"adapter_names holds {unknown[0]!r}, which is not among the adapters: {', '.join(map(repr, known))}."
        )
    if any(layer.merged for layer in host.layers()):
        raise MixedBatchError("Rows can't have different adapters while some are merged; call unmerge_adapter() first.")
