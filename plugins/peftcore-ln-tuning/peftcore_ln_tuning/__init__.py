"""LN tuning for peftcore: the normalization layers train, and nothing else (arXiv 2312.11420)."""

from collections.abc import Mapping

from torch import Tensor

from peftcore import PeftMethod, hookimpl
from peftcore_ln_tuning.adapter import LNTuningAdapter
from peftcore_ln_tuning.config import LNTuningConfig
from peftcore_ln_tuning.default_targets import TARGETS
from peftcore_ln_tuning.files import with_one_name
from peftcore_ln_tuning.tuner import LNTuningTuner

__all__ = ["LNTuningAdapter", "LNTuningConfig", "LNTuningTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=LNTuningConfig,
        adapter_cls=LNTuningAdapter,
        tuner_cls=LNTuningTuner,
        default_targets=TARGETS,
        paper="2312.11420",
    )


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Read what HF PEFT wrote of an adapter that was not called ``default``."""
    return with_one_name(state) if method == "ln_tuning" else None
