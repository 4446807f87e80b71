"""BOFT for peftcore: W' = s ∘ (W · B₁ · … · B_m) with orthogonal butterfly factors (arXiv 2311.06243)."""

from collections.abc import Mapping

from torch import Tensor

from peftcore import PeftMethod, hookimpl
from peftcore.config import PeftConfig
from peftcore_boft.adapter import BOFTAdapter, with_factors
from peftcore_boft.config import BOFTConfig

__all__ = ["BOFTAdapter", "BOFTConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=BOFTConfig, adapter_cls=BOFTAdapter, paper="2311.06243")


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor], config: PeftConfig) -> Mapping[str, Tensor] | None:
    """Add the factors that HF PEFT leaves out: it holds one, whatever the config says, so the others do nothing."""
    if method != "boft" or not isinstance(config, BOFTConfig) or config.boft_n_butterfly_factor == 1:
        return None
    number = config.boft_n_butterfly_factor
    return {key: with_factors(value, number) if key.endswith("boft_R") else value for key, value in state.items()}
