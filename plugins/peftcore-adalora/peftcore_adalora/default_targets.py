"""The modules that AdaLoRA adapts in a transformers model when the config names none."""

from __future__ import annotations

from peftcore.targets.usual import ALL_PROJECTIONS, ATTENTION_PROJECTIONS

_AS_USUAL = (
    "bert bloom deberta gemma gemma2 gemma3_text gemma4 gpt2 gpt_bigcode gpt_neo gpt_neox gptj llama llama4 nemotron_h "
    "qwen2 qwen3"
)

#: By ``config.model_type``: names of modules; more than the attention projections where the authors adapted more.
TARGETS: dict[str, list[str]] = {
    **{model_type: ATTENTION_PROJECTIONS[model_type] for model_type in _AS_USUAL.split()},
    **ALL_PROJECTIONS,
    "roberta": ["query", "key", "value", "dense"],
}
