"""Allocation: what adapters are made of, ranks or subspaces, shares a budget, and gets it where the loss depends on it.

How much the loss depends on something is its importance, measured step by step (section 3.2 of arXiv 2303.10512).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.base_layers.base import BaseLayer
from peftcore.config import PeftConfig
from peftcore.exceptions import StepError
from peftcore.method import PeftMethod
from peftcore.tuner import LayerTuner


class Importance:
    """How much the loss depends on each entry of a module's parameters.

    An entry's sensitivity is |w · ∂loss/∂w|. Its importance is the running mean of that, times the running mean of how
    far a step is from the mean before it, the uncertainty. The paper takes the mean after it, which is beta1 times as
    far from each step; that changes no order, and here means something for a beta1 of 0 too.

    Args:
        beta1: How much of the mean sensitivity a step keeps.
        beta2: How much of the mean uncertainty a step keeps.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.betas = beta1, beta2
        #: By parameter: mean sensitivity and mean uncertainty.
        self._means: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take a step's gradients into the means; the loss does not depend on a parameter that has none.

        Args:
            module: Always the same.
        """
        beta1, beta2 = self.betas
        for name, parameter in module.named_parameters():
            now = torch.zeros_like(parameter) if parameter.grad is None else (parameter * parameter.grad).abs()
            if name not in self._means:
                self._means[name] = torch.zeros_like(now), torch.zeros_like(now)
            sensitivity, uncertainty = self._means[name]
            uncertainty.lerp_((now - sensitivity).abs(), 1 - beta2)
            sensitivity.lerp_(now, 1 - beta1)

    def of(self, name: str) -> Tensor:
        """Return the importance of a parameter's entries, shaped as it is."""
        sensitivity, uncertainty = self._means[name]
        return sensitivity * uncertainty


class AllocatedAdapter(Adapter):
    """An adapter of parts, each of which may get a share of a budget or none.

    A method's class derives from it before its family.
    """

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer has one weight; stacked experts have several, which one budget can't weigh."""
        return super().can_adapt(base) and base.stack == 1

    @abstractmethod
    def scores(self, importance: Importance) -> Tensor:
        """Return how important each part is, ``[parts]``.

        Args:
            importance: That of this module's parameters.
        """

    @abstractmethod
    def keep(self, kept: Tensor) -> None:
        """Give the budget to some of the parts.

        Args:
            kept: ``[parts]``, bool, on any device.
        """


class AllocatingTuner(LayerTuner):
    """Puts adapters on the layers of a model, and shares a budget out between their parts.

    The author writes :meth:`after_step`, from :meth:`measure` and :meth:`allocate`.

    Attributes:
        adapters: The adapter modules by the paths of their layers.
        importance: That of each one's parameters, since it was last cleared.
    """

    #: What the parts are called.
    parts: ClassVar[str] = "parts"

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, method: PeftMethod) -> None:
        super().__init__(model, name, config, method)
        self.adapters: dict[str, Any] = {}
        self.importance: dict[str, Importance] = {}

    def make_adapter(self, path: str, base: BaseLayer) -> Adapter:
        """Make the adapter module for one layer, and remember it."""
        adapter = self.adapters[path] = super().make_adapter(path, base)
        return adapter

    def measure(self, beta1: float, beta2: float) -> None:
        """Take a step's gradients into the importance of all parameters.

        Args:
            beta1, beta2: As :class:`Importance` has them.

        Raises:
            StepError: There are no gradients; nothing has changed.
        """
        if all(parameter.grad is None for adapter in self.adapters.values() for parameter in adapter.parameters()):
            raise StepError(
                f"Adapter {self.name!r} ({self.method.name}) has no gradients to tell which {self.parts} matter: call "
                "update_and_allocate(global_step) after loss.backward() and before optimizer.zero_grad()."
            )
        for path, adapter in self.adapters.items():
            self.importance.setdefault(path, Importance(beta1, beta2)).update(adapter)

    def allocate(self, budget: int) -> dict[str, Tensor]:
        """Let the adapters keep the most important parts of all layers together, and return which these are.

        Args:
            budget: How many.

        Returns:
            By the paths of layers, ``[parts]``, bool, on the CPU.
        """
        scores = {path: adapter.scores(self.importance[path]).float().cpu() for path, adapter in self.adapters.items()}
        best = torch.cat([*scores.values()]).argsort(descending=True, stable=True)[:budget]
        sizes = [len(score) for score in scores.values()]
        kept = torch.zeros(sum(sizes), dtype=torch.bool).index_fill(0, best, True)
        masks = dict(zip(scores, torch.split(kept, sizes), strict=True))
        for path, mask in masks.items():
            self.adapters[path].keep(mask)
        return masks


def falling(step: int, first: int, last: int, start: float, end: float, exponent: float = 3.0) -> float:
    """Return a budget that is ``start`` up to a step, ``end`` from another one on, and falls as a power between them.

    Args:
        step: The step.
        first: Up to which the budget is ``start``.
        last: From which on it is ``end``; after ``first``.
        start, end: The budgets.
        exponent: How fast it falls at first; 1 is a straight line.
    """
    left = min(max(1 - (step - first) / (last - first), 0.0), 1.0)
    return end + (start - end) * left**exponent
