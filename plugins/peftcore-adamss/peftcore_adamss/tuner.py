"""AdamssTuner: lets training go on for the clusters that matter."""

from __future__ import annotations

from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.base_layers import BaseLayer
from peftcore.config import PeftConfig
from peftcore.exceptions import StepError
from peftcore.method import PeftMethod
from peftcore.tuner import LayerTuner
from peftcore_adamss.adapter import AdamssAdapter
from peftcore_adamss.config import AdamssConfig
from peftcore_adamss.importance import Importance


class AdamssTuner(LayerTuner):
    """Puts AdaMSS on the layers of a model, and freezes clusters in training (adaptive subspace allocation).

    Attributes:
        adapters: The adapter modules by the paths of their layers.
    """

    config: AdamssConfig

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, method: PeftMethod) -> None:
        super().__init__(model, name, config, method)
        self.adapters: dict[str, AdamssAdapter] = {}
        #: By a layer's path and the number of a cluster.
        self._importance: dict[tuple[str, int], Importance] = {}

    def make_adapter(self, path: str, base: BaseLayer) -> Adapter:
        """Make the adapter module for one layer, and remember it."""
        adapter = super().make_adapter(path, base)
        assert isinstance(adapter, AdamssAdapter)
        self.adapters[path] = adapter
        return adapter

    def requires_grad_(self, trains: bool) -> None:
        """Let the adapter train, but for what is frozen for good, or hold it still."""
        super().requires_grad_(trains)
        for adapter in self.adapters.values():
            for cluster in adapter.frozen:
                adapter.freeze(cluster)

    def training(self) -> dict[tuple[str, int], list[nn.Parameter]]:
        """Return the parameters of each cluster that is not frozen, by its layer's path and its number."""
        return {
            (path, cluster): [adapter.adamss_A[cluster], adapter.adamss_B[cluster]]
            for path, adapter in self.adapters.items()
            for cluster in range(len(adapter.adamss_A))
            if cluster not in adapter.frozen
        }

    def after_step(self, global_step: int) -> None:
        """Measure how important each cluster is, and freeze clusters when the schedule says so.

        Call it between ``optimizer.step()`` and ``optimizer.zero_grad()``. Without ``use_asa`` nothing happens.
        A frozen cluster keeps what it has learned. Files do not say which ones are frozen.

        Raises:
            StepError: There are no gradients; nothing has changed.
        """
        config, training = self.config, self.training()
        if not config.use_asa or global_step < config.init_warmup or len(training) <= config.asa_target_subspaces:
            return
        self._measure(training)
        if global_step >= config.final_warmup or global_step % config.mask_interval == 0:
            total = sum(len(adapter.adamss_A) for adapter in self.adapters.values())
            self._keep(config.budget(global_step, total))

    def _measure(self, training: dict[tuple[str, int], list[nn.Parameter]]) -> None:
        if all(parameter.grad is None for parameters in training.values() for parameter in parameters):
            raise StepError(
                f"Adapter {self.name!r} (adamss) has no gradients to tell which clusters matter: call "
                "update_and_allocate(global_step) after loss.backward() and before optimizer.zero_grad()."
            )
        betas = self.config.asa_importance_beta, self.config.asa_uncertainty_beta
        for key, parameters in training.items():
            self._importance.setdefault(key, Importance(*betas)).update(parameters)

    def _keep(self, budget: int) -> None:
        """Freeze all but the most important clusters, and start to measure anew."""
        scores = {key: importance.score() for key, importance in self._importance.items()}
        for path, cluster in sorted(scores, key=lambda key: scores[key], reverse=True)[budget:]:
            self.adapters[path].freeze(cluster)
        self._importance.clear()
