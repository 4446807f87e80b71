"""GloraTuner: HF PEFT's files hold zeros for what a config leaves out, and so do files written here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from peftcore.tuner import LayerTuner
from peftcore_glora.adapter import GloraAdapter


class GloraTuner(LayerTuner):
    """Puts GLoRA on the layers of a model; zeros are in its files alone, and take no memory in the model."""

    def derived_state(self) -> Mapping[str, Tensor]:
        """Return the zeros, which take no memory here either."""
        return {
            f"{self.layer_prefix}{placement.key}.{name}": torch.zeros(()).expand(shape)
            for placement in self.placements
            if isinstance(placement.adapter, GloraAdapter)
            for name, shape in placement.adapter.absent().items()
        }

    @contextmanager
    def settling(self, state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Leave out a file's zeros; other numbers in their place are left in, and then are too many."""
        zeros = {key.removeprefix(self.layer_prefix) for key in self.derived_state()}
        with super().settling(state) as state:
            yield {key: x for key, x in state.items() if key.removeprefix(self.layer_prefix) not in zeros or x.any()}
