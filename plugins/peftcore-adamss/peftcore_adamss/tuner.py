"""AdamssTuner: lets training go on for the clusters that matter."""

from __future__ import annotations

from peftcore.allocation import AllocatingTuner
from peftcore_adamss.config import AdamssConfig


class AdamssTuner(AllocatingTuner):
    """Puts AdaMSS on the layers of a model, and freezes clusters in training (adaptive subspace allocation)."""

    config: AdamssConfig
    parts = "clusters"

    def requires_grad_(self, trains: bool) -> None:
        """Let the adapter train, but for what is frozen for good, or hold it still."""
        super().requires_grad_(trains)
        for adapter in self.adapters.values():
            adapter.freeze(())

    def after_step(self, global_step: int) -> None:
        """Measure how important each cluster is, and freeze clusters when the schedule says so.

        Call it between ``optimizer.step()`` and ``optimizer.zero_grad()``. Without ``use_asa`` nothing happens.
        A frozen cluster keeps what it has learned. Files do not say which ones are frozen.

        Raises:
            StepError: There are no gradients; nothing has changed.
        """
        config, adapters = self.config, self.adapters.values()
        clusters = sum(len(adapter.adamss_A) for adapter in adapters)
        training = clusters - sum(len(adapter.frozen) for adapter in adapters)
        if not config.use_asa or global_step < config.init_warmup or training <= config.asa_target_subspaces:
            return
        self.measure(config.asa_importance_beta, config.asa_uncertainty_beta)
        if global_step >= config.final_warmup or global_step % config.mask_interval == 0:
            self.allocate(config.budget(global_step, clusters))
            self.importance.clear()  # to be measured anew
