"""TrainableTokensTuner: finds the embedding, and the layers that store its weight too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from peftcore.auxiliary import with_tied_rows
from peftcore.base_layers import BaseLayer
from peftcore.merging import stored_weight
from peftcore.slots import Slot, one_view, unwrap
from peftcore.targets import Inventory, OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner


class TrainableTokensTuner(LayerTuner):
    """Puts trained rows into the embeddings of a model."""

    def default_targets(self) -> Sequence[str] | None:
        """Return the path of the model's input embedding if the config names no targets, else None."""
        if self.config.target_modules is not None or self.config.exclude_modules:
            return None
        embedding = _input_embedding(self.model)
        paths = (places[0].path for places in Inventory(self.model, unwrap) if places[0].module is embedding)
        return [next(paths, "embed_tokens")]

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots; layers that store one weight have rows in common.

        Raises:
            TargetError: An index lies outside of the vocabulary.
        """
        return [one_view(slot) for slot in self._tied(super().plan(report, on_unmatched))]

    def _tied(self, slots: Sequence[Slot]) -> Iterator[Slot]:
        done: list[nn.Parameter | None] = []
        for slot in slots:
            weight = stored_weight(slot.base)
            if slot.auxiliary:
                yield slot
            elif weight is None or not any(weight is other for other in done):
                done.append(weight)
                yield from with_tied_rows(self.model, slot)


def _input_embedding(model: nn.Module) -> nn.Module | None:
    """Return the embedding that a model names as its own, or None if it names none."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # models without one answer so
        return None
    return unwrap(embedding) if isinstance(embedding, nn.Module) else None
