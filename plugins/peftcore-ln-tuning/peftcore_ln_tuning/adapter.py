"""LNTuningAdapter: a copy of a layer that trains in its place."""

from __future__ import annotations

from torch import nn

from peftcore.adapters.selective import ModuleCopy
from peftcore.auxiliary import bare_copy
from peftcore.base_layers import BaseLayer
from peftcore_ln_tuning.config import LNTuningConfig
from peftcore_ln_tuning.files import SavedCopy


class LNTuningAdapter(ModuleCopy):
    """LN tuning on one layer (arXiv 2312.11420): a copy of it, all of whose parameters train.

    Files hold the copy's own tensors under ``ln_tuning_layers``: ``ln_tuning_layers.weight`` and, of a layer that has
    one, ``ln_tuning_layers.bias``.
    """

    def __init__(self, base: BaseLayer, config: LNTuningConfig, shared: None = None) -> None:
        super().__init__(base, bare_copy(base.layer))

    @property
    def ln_tuning_layers(self) -> nn.Module:
        """The copy."""
        return self.module

    def saved_module(self) -> nn.Module:
        """Return a module that holds the copy's tensors under the names that files have."""
        return SavedCopy(self.module)
