"""AdaLoraTuner: adds the orthogonality loss, and gives the ranks to the layers that need them (algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.base_layers import BaseLayer
from peftcore.config import PeftConfig
from peftcore.exceptions import StepError
from peftcore.method import PeftMethod
from peftcore.tuner import LayerTuner
from peftcore_adalora.adapter import AdaLoraAdapter
from peftcore_adalora.config import OF_LAYER, AdaLoraConfig
from peftcore_adalora.importance import Importance


class AdaLoraTuner(LayerTuner):
    """Puts AdaLoRA on the layers of a model, and moves ranks between them in training (arXiv 2303.10512).

    Attributes:
        adapters: The adapter modules by the paths of their layers.
    """

    config: AdaLoraConfig

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, method: PeftMethod) -> None:
        super().__init__(model, name, config, method)
        self.adapters: dict[str, AdaLoraAdapter] = {}
        self._importance: dict[str, Importance] = {}

    def make_adapter(self, path: str, base: BaseLayer) -> Adapter:
        """Make the adapter module for one layer, and remember it."""
        adapter = super().make_adapter(path, base)
        assert isinstance(adapter, AdaLoraAdapter)
        self.adapters[path] = adapter
        return adapter

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
        assert config.total_step is not None
        is_last = global_step >= config.total_step - config.tfinal
        if config.rank_pattern is None:
            if not (is_last and self._importance):
                self._measure()
            if is_last or global_step % config.deltaT == 0:
                self._allocate(config.budget(global_step), is_last)
        else:
            for adapter in self.adapters.values():
                if adapter.kept is not None:  # the optimizer has moved what was taken
                    adapter.zero_all_but(adapter.kept)

    def _measure(self) -> None:
        factors = (adapter.lora_E for adapter in self.adapters.values())
        if all(factor.grad is None for factor in factors):
            raise StepError(
                f"Adapter {self.name!r} (adalora) has no gradients to tell which ranks matter: call "
                "update_and_allocate(global_step) after loss.backward() and before optimizer.zero_grad()."
            )
        for path, adapter in self.adapters.items():
            importance = self._importance.setdefault(path, Importance(self.config.beta1, self.config.beta2))
            importance.update(adapter)

    def _allocate(self, mean_rank: float, for_good: bool) -> None:
        """Keep the most important ranks of all layers, and set the entries of E to zero that belong to the others."""
        scores = {path: importance.of_ranks() for path, importance in self._importance.items()}
        everything = torch.cat([score.to("cpu", torch.float32) for score in scores.values()])
        budget = int(mean_rank * len(scores))
        kept = torch.zeros(len(everything), dtype=torch.bool)
        kept[everything.topk(budget).indices] = True
        masks = dict(zip(scores, torch.split(kept, [len(score) for score in scores.values()]), strict=True))
        for path, mask in masks.items():
            self.adapters[path].zero_all_but(mask)
        if for_good:
            self.config.rank_pattern = {path + OF_LAYER: mask.tolist() for path, mask in masks.items()}
            for path, mask in masks.items():
                self.adapters[path].kept = mask
            self._importance.clear()
