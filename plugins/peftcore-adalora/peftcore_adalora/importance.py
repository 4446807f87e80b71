"""Importance: how much the loss depends on each rank of a layer, averaged over steps (section 3.2 of 2303.10512)."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcore_adalora.adapter import AdaLoraAdapter


class Importance:
    """The importance of one layer's ranks.

    A parameter's sensitivity is |w · ∂loss/∂w|. Its importance is the running mean of that, times the running mean of
    how far single steps are from it, the uncertainty.

    Args:
        beta1: How much of the mean sensitivity a step keeps.
        beta2: How much of the mean uncertainty a step keeps.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.betas = beta1, beta2
        #: By parameter: mean sensitivity and mean uncertainty.
        self._means: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def update(self, adapter: AdaLoraAdapter) -> None:
        """Take a step's gradients into the means; the loss does not depend on a parameter that has none."""
        beta1, beta2 = self.betas
        for name, parameter in adapter.named_parameters():
            now = torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).abs()
            zero = torch.zeros_like(parameter)
            sensitivity, uncertainty = self._means.get(name, (zero, zero))
            sensitivity = beta1 * sensitivity + (1 - beta1) * now
            self._means[name] = sensitivity, beta2 * uncertainty + (1 - beta2) * (now - sensitivity).abs()

    def of_ranks(self) -> Tensor:
        """Return each rank's importance, ``[r]``: its entry of E's, and the means over its row of A and column of B."""
        score = {name: sensitivity * uncertainty for name, (sensitivity, uncertainty) in self._means.items()}
        return score["lora_E"].squeeze(1) + score["lora_A"].mean(1) + score["lora_B"].mean(0)
