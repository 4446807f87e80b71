"""Importance: how much the loss depends on some parameters, averaged over steps (AdaLoRA's, arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Importance:
    """The importance of one cluster of a layer.

    A parameter's sensitivity is |w · ∂loss/∂w|. Its importance is the running mean of that, times the running mean of
    how far single steps are from it, the uncertainty.

    Args:
        beta1: How much of the mean sensitivity a step keeps.
        beta2: How much of the mean uncertainty a step keeps.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.betas = beta1, beta2
        #: By parameter: mean sensitivity and mean uncertainty.
        self._means: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take a step's gradients into the means; always of the same parameters."""
        beta1, beta2 = self.betas
        now = [torch.zeros_like(p) if p.grad is None else (p * p.grad).abs() for p in parameters]
        before = self._means or [(torch.zeros_like(one), torch.zeros_like(one)) for one in now]
        self._means = [
            (beta1 * mean + (1 - beta1) * one, beta2 * uncertainty + (1 - beta2) * (one - mean).abs())
            for (mean, uncertainty), one in zip(before, now, strict=True)
        ]

    def score(self) -> float:
        """Return the sum over parameters of the mean importance of their entries."""
        return sum((mean * uncertainty).mean().item() for mean, uncertainty in self._means)
