"""The methods that are installed from plugins/, and configs of theirs that fit layers with eight features.

A method's defaults are made for layers with a thousand; ranks and sizes of blocks above four become four here.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from peftcore import PeftConfig
from peftcore.config import LayerConfig
from peftcore.registry import registry

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

#: Options of a config that cut a layer into pieces.
CUTS = re.compile(r"(.*_)?(r|rank|size|length)")
LARGEST = 4

#: What a config needs beside, or needs otherwise.
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"num_virtual_tokens": 3} for name in ("cartridge", "p_tuning", "prefix_tuning", "prompt_tuning")},
    "adaption_prompt": {"adapter_len": 2, "adapter_layers": 1},
    "fourierft": {"n_frequency": 4, "scaling": 10.0},  # the default is for a thousand features
    "cpt": {"task_type": "CAUSAL_LM", "cpt_token_ids": [1, 2]},
    "multitask_prompt_tuning": {"num_virtual_tokens": 3},
    "adalora": {"total_step": 10, "r": 8},  # it warns of another r, which it does not use
    "supertuning": {"sparsity": 0.9},  # the default leaves no entry of a small layer
    "trainable_tokens": {"token_indices": [1, 4]},
    "waveft": {"n_frequency": 12, "scaling": 2.0},
    "frod": {"sparse_rate": 0.1},
    "vblora": {"num_vectors": 8},
}


def first_party_methods() -> list[str]:
    """Return the names of the methods in plugins/ that can be used, sorted."""
    own = {path.parent.name for path in PLUGINS.glob("*/pyproject.toml")}
    usable = [status for status in registry.status() if status.distribution in own]
    return sorted(name for status in usable if status.state in ("available", "loaded") for name in status.methods)


def small_config(method: str, **options: Any) -> PeftConfig:
    """Return a config for layers with eight or sixteen features."""
    config_cls = registry[method].config_cls
    cuts = {
        field.name: LARGEST
        for field in dataclasses.fields(config_cls)
        if CUTS.fullmatch(field.name)
        and not hasattr(LayerConfig, field.name)
        and isinstance(field.default, int)
        and field.default > LARGEST
    }
    return config_cls(**{**cuts, **OPTIONS.get(method, {}), **options})
