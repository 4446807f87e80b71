"""VeraProjections: the random matrices that all layers of an adapter share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcore.base_layers import BaseLayer
from peftcore_vera.config import VeraConfig


class VeraProjections(nn.Module):
    """The frozen A and B of an adapter, as large as its largest layers; each layer uses the part that fits it.

    Both are uniform within ±√(6 / columns) (Kaiming) and drawn on the CPU, so that one seed gives the same numbers on
    every device, and those of HF PEFT.

    Attributes:
        vera_A: ``[r, largest in · kernel]``.
        vera_B: ``[largest out, r]``.
    """

    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, config: VeraConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        shapes = [base.matrix_shape for base in bases]
        rows, columns = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
        generator = torch.Generator("cpu").manual_seed(config.projection_prng_key)
        for name, size in (("vera_A", (config.r, columns)), ("vera_B", (rows, config.r))):
            drawn = nn.init.kaiming_uniform_(torch.empty(size, device="cpu", dtype=torch.float32), generator=generator)
            self.register_buffer(name, drawn.to(torch.get_default_device()), persistent=config.save_projection)
