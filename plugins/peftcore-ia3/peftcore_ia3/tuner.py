"""IA3Tuner: settles which of the target modules are feedforward layers, which takes the model to know."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence

from peftcore.base_layers import BaseLayer
from peftcore.exceptions import TargetError
from peftcore.slots import Slot
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.targets.names import is_wildcard
from peftcore.tuner import LayerTuner, model_type
from peftcore_ia3.config import IA3Config
from peftcore_ia3.default_targets import FEEDFORWARD


class IA3Tuner(LayerTuner):
    """Puts IA3 on the layers of a model."""

    config: IA3Config

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots, once it is known which layers are feedforward ones.

        Args:
            report: What the config means.
            on_unmatched: What to do about feedforward modules that are no targets, among others.

        Raises:
            TargetError: An entry of ``feedforward_modules`` means no target module.
        """
        names = self.config.feedforward_modules
        if names is None:
            names = set(FEEDFORWARD.get(model_type(self.model), ()))
        elif on_unmatched != "ignore":
            self._check([match.path for match in report.matched], on_unmatched == "error")
        self.config = dataclasses.replace(self.config, feedforward_modules=self._as_files_have(names))
        return super().plan(report, on_unmatched)

    def _as_files_have(self, names: str | set[str]) -> str | set[str]:
        """Return an expression for names that are none of the targets' own: HF PEFT takes no others in a list."""
        targets = self.config.target_modules
        among_targets = isinstance(targets, set) and targets.issuperset(names)
        if isinstance(names, str) or not names or among_targets or any(map(is_wildcard, names)):
            return names
        return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(names)))})"

    def _check(self, targets: Sequence[str], refuse: bool) -> None:
        if not (idle := self.config.feedforward_names().unmet((), targets)):
            return
        shown = f"{', '.join(targets[:5])}{' …' if len(targets) > 5 else ''}"
        problem = f"feedforward_modules: {', '.join(map(repr, idle))} means no target module. The targets are {shown}."
        if refuse:
            raise TargetError(f"IA3Config.{problem} Correct the entry, or add it to target_modules.")
        warnings.warn(f"IA3Config.{problem}", UserWarning, stacklevel=2)
