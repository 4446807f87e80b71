"""The modules that BEFT adapts in a transformers model when the config names none: the value projections."""

from __future__ import annotations

from peftcore.targets.usual import by_model_type

#: By ``config.model_type``: names of modules.
TARGETS = by_model_type(
    ("v", "mt5 t5"),
    ("value", "bert roberta"),
    ("value_proj", "deberta-v2"),
    ("v_proj", "bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt phi qwen2 qwen3"),
)
