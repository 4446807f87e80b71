"""What the parity tests share: the same adapter in both libraries, and how their outputs are compared."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from torch import Tensor, nn

import peftcore
from peftcore import LoraConfig, PeftModel

from .models import answer, build, inputs_for

__all__ = ["Case", "answer", "assert_same", "build", "file_tensors", "hf_load", "inputs_for", "perturb"]

TOLERANCE = 1e-5


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Check that two outputs are equal to 1e-5, of the largest number in them."""
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * scale)


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter that trains away from where it started, so that each of them counts."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.3)


def hf_load(model: nn.Module, directory: Path, adapter_name: str = "default", **kwargs: Any) -> peft.PeftModel:
    """Load an adapter with HF PEFT, which only warns of tensors that it did not find."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(model, directory, adapter_name=adapter_name, **kwargs).eval()


def file_tensors(directory: Path) -> dict[str, Tensor]:
    """Return what an adapter's file holds."""
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def file_config(directory: Path) -> dict[str, Any]:
    """Return what an adapter's config file holds."""
    return json.loads((directory / "adapter_config.json").read_text())


class Case:
    """One model and one config, in both libraries.

    Args:
        model: Name of the model, see :mod:`.models`.
        **options: The config's, for both.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.model = model
        self.options = {"r": 2, "lora_alpha": 3, **options}

    def build(self) -> nn.Module:
        return build(self.model)

    def ours(self, adapter_name: str = "default", seed: int = 0) -> PeftModel:
        """Return the model as peftcore adapts it, the adapter's parameters away from where they started."""
        adapted = peftcore.get_peft_model(self.build(), LoraConfig(**self.options), adapter_name)
        perturb(adapted, seed)
        return adapted.eval()

    def theirs(self, adapter_name: str = "default", seed: int = 0) -> peft.PeftModel:
        """Return the model as HF PEFT adapts it, likewise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(self.build(), peft.LoraConfig(**self.options), adapter_name)
        perturb(adapted, seed)
        return adapted.eval()

    def answer(self, model: nn.Module, **kwargs: Any) -> Tensor:
        return answer(model, self.build(), **kwargs)
