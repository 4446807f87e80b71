"""The attention modules that adaption prompts stand on in a transformers model when the config names none."""

from __future__ import annotations

from peftcore.targets.usual import by_model_type

#: By ``config.model_type``: names of modules.
TARGETS = by_model_type(("self_attn", "llama mistral"), ("attn", "gpt2"))
