"""ShiraAdapter: a few entries of a weight, each with a number of its own that is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sparse import check_places, scattered
from peftcore.base_layers import BaseLayer
from peftcore_shira.config import ShiraConfig


class ShiraAdapter(WeightDelta):
    """Sparse adaptation of one layer: Δ is zero but for n = r · (out + in) entries (arXiv 2406.13175).

    The weight is seen as a matrix: a convolution's ``[out, in / groups · kernel]``, stacked experts'
    ``[experts · out, in]``, and ``out`` and ``in`` are this matrix's sizes.
    ``shira_weight`` ``[n]`` trains; ``shira_indices`` ``[2, n]``, int32, holds the entries' rows and columns, is saved,
    and does not train.

    Raises:
        ConfigError: There are fewer entries than are to be trained, or ``mask_fn`` does not return a fitting mask.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS

    shira_indices: Tensor

    def __init__(self, base: BaseLayer, config: ShiraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        rows, columns = self._sizes = base.weight_shape.numel() // base.matrix_shape[1], base.matrix_shape[1]
        count = config.r * (rows + columns)
        if count > rows * columns:
            config.refuse(
                "r",
                f"{config.r} stands for {config.r} · ({rows} + {columns}) = {count} entries, and the weight of a "
                f"{base} has {rows * columns}: "
                "choose a smaller one, or exclude the layer",
            )
        self.shira_weight = nn.Parameter(torch.zeros(count) if config.init_weights else torch.randn(count))
        self.register_buffer("shira_indices", self._choose(config, count))

    def _choose(self, config: ShiraConfig, count: int) -> Tensor:
        if self.shira_weight.is_meta:  # a file is going to bring the entries
            return torch.empty(2, count, dtype=torch.int32)
        if config.mask_fn is not None:
            entries = self._masked(config, config.mask_fn(self.base.layer, config.r, random_seed=config.random_seed))
            if len(entries) != count:
                _refuse_mask(config, self.base, f"{len(entries)} entries instead of {count}")
        else:
            generator = torch.Generator()
            if config.random_seed is not None:
                generator.manual_seed(config.random_seed)
            everything = torch.randperm(self._sizes[0] * self._sizes[1], generator=generator, device="cpu")
            entries = everything[:count].sort().values
        columns = self._sizes[1]
        return torch.stack([entries // columns, entries % columns]).to(self.base.device, torch.int32)

    def _masked(self, config: ShiraConfig, mask: object) -> Tensor:
        """Return the positions of a mask's ones in the flattened weight."""
        shape = self.base.weight_shape
        if not isinstance(mask, Tensor) or mask.shape != shape:
            found = f"a tensor {list(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
            _refuse_mask(config, self.base, f"{found} instead of a tensor {list(shape)}")
        if not ((mask == 0) | (mask == 1)).all():
            _refuse_mask(config, self.base, "numbers other than 0 and 1")
        return mask.flatten().nonzero().squeeze(1)

    def delta_weight(self) -> Tensor:
        """Return the numbers at their entries, and zeros elsewhere."""
        entries = self.shira_indices[0].long() * self._sizes[1] + self.shira_indices[1]
        return scattered(self.shira_weight, entries, self.base.weight_shape)

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Check that the entries that a file names are in the weight."""
        if (indices := state.get("shira_indices")) is not None:
            check_places("shira_indices", indices, self._sizes, self.base)


def _refuse_mask(config: ShiraConfig, base: BaseLayer, problem: str) -> NoReturn:
    config.refuse("mask_fn", f"returned {problem} for a {base}")
