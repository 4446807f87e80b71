"""AdaLoraTuner: adds the orthogonality loss, and gives the ranks to the layers that need them (algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcore.allocation import AllocatingTuner
from peftcore_adalora.config import OF_LAYER, AdaLoraConfig


class AdaLoraTuner(AllocatingTuner):
    """Puts AdaLoRA on the layers of a model, and moves ranks between them in training (arXiv 2303.10512)."""

    config: AdaLoraConfig
    parts = "ranks"

    def extra_loss(self) -> Tensor | None:
        """Return the orthogonality loss, the mean over all A and B of ‖A·Aᵀ - 1‖ and ‖Bᵀ·B - 1‖, times its weight.

        None if the adapter does not train. The paper has squares of the norms; the authors' code and HF PEFT do not.
        """
        gaps = [gap for adapter in self.adapters.values() for gap in adapter.orthogonality_gaps()]
        if not gaps or not any(gap.requires_grad for gap in gaps):
            return None
        return self.config.orth_reg_weight * torch.stack([gap.to(gaps[0].device) for gap in gaps]).mean()

    def after_step(self, global_step: int) -> None:
        """Measure how important each rank is, and take ranks when the schedule says so.

        Call it between ``optimizer.step()`` and ``optimizer.zero_grad()``, with steps that count up to ``total_step``.
        A rank that was taken may come back until ``total_step - tfinal``; then it is decided, ``config.rank_pattern``
        says which ranks are left, and files hold these alone.
        An adapter that was loaded with a ``rank_pattern`` keeps its ranks.

        Raises:
            StepError: There are no gradients; nothing has changed.
        """
        config = self.config
        if config.rank_pattern is not None:
            for adapter in self.adapters.values():
                if adapter.kept is not None:  # the optimizer has moved what was taken
                    adapter.keep(adapter.kept)
            return
        is_last = global_step >= config.last_allocation
        if not (is_last and self.importance):
            self.measure(config.beta1, config.beta2)
        if is_last or global_step % config.deltaT == 0:
            masks = self.allocate(int(config.budget(global_step) * len(self.adapters)))
            if is_last:
                self._decide(masks)

    def _decide(self, masks: dict[str, Tensor]) -> None:
        """Let the ranks that are left be those that files hold."""
        self.config.rank_pattern = {path + OF_LAYER: mask.tolist() for path, mask in masks.items()}
        for path, mask in masks.items():
            self.adapters[path].kept = mask
        self.importance.clear()
