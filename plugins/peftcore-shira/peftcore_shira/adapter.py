"""ShiraAdapter: a few entries of a weight, each with a number of its own that is added to it."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from peftcore.adapters.sparse import SparseDelta
from peftcore.base_layers import BaseLayer
from peftcore_shira.config import ShiraConfig


class ShiraAdapter(SparseDelta):
    """Sparse adaptation of one layer: Δ is zero but for n = r · (out + in) entries (arXiv 2406.13175).

    The weight is seen as a matrix: a convolution's ``[out, in / groups · kernel]``, stacked experts'
    ``[experts · out, in]``, and ``out`` and ``in`` are this matrix's sizes.
    ``shira_weight`` ``[n]`` trains; ``shira_indices`` ``[2, n]``, int32, holds the entries' rows and columns, is saved,
    and does not train.

    Raises:
        ConfigError: There are fewer entries than are to be trained, or ``mask_fn`` does not return a fitting mask.
    """

    values_name, places_name = "shira_weight", "shira_indices"
    by_rows = True

    def __init__(self, base: BaseLayer, config: ShiraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        rows, columns = self.sizes()
        count = config.r * (rows + columns)
        if count > rows * columns:
            config.refuse(
                "r",
                f"{config.r} stands for {config.r} · ({rows} + {columns}) = {count} entries, and the weight of a "
                f"{base} has {rows * columns}: choose a smaller one, or exclude the layer",
            )
        self.hold_entries(count, lambda: _chosen(base, config, count), zeros=config.init_weights)


def _chosen(base: BaseLayer, config: ShiraConfig, count: int) -> Tensor:
    """Return the entries' positions in the flattened weight, in order."""
    if config.mask_fn is not None:
        mask = config.mask_fn(base.layer, config.r, random_seed=config.random_seed)
        return _ones(base, config, mask, count)
    generator = torch.Generator()
    if config.random_seed is not None:
        generator.manual_seed(config.random_seed)
    everything = torch.randperm(base.weight_shape.numel(), generator=generator, device="cpu")
    return everything[:count].sort().values


def _ones(base: BaseLayer, config: ShiraConfig, mask: object, count: int) -> Tensor:
    """Return the positions of a mask's ones."""

    def refuse(found: str) -> NoReturn:
        config.refuse("mask_fn", f"returned {found} for a {base}")

    shape = base.weight_shape
    if not isinstance(mask, Tensor) or mask.shape != shape:
        found = f"a tensor {list(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        refuse(f"{found} instead of a tensor {list(shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        refuse("numbers other than 0 and 1")
    entries = mask.flatten().nonzero().squeeze(1)
    if len(entries) != count:
        refuse(f"{len(entries)} entries instead of {count}")
    return entries
