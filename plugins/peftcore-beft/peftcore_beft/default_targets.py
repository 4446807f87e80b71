"""The modules that BEFT adapts in a transformers model when the config names none: the value projections."""

from __future__ import annotations

_TABLE = {
    "v": "mt5 t5",
    "value": "bert roberta",
    "value_proj": "deberta-v2",
    "v_proj": "bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt phi qwen2 qwen3",
}

#: By ``config.model_type``: names of modules.
TARGETS: dict[str, list[str]] = {
    model_type: [value] for value, model_types in _TABLE.items() for model_type in model_types.split()
}
