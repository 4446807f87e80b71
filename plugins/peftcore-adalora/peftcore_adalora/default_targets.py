"""The modules that AdaLoRA adapts in a transformers model when the config names none."""

from __future__ import annotations

from peftcore.targets.usual import ATTENTION_PROJECTIONS

_AS_USUAL = (
    "bert bloom deberta gemma gemma2 gemma3_text gemma4 gpt2 gpt_bigcode gpt_neo gpt_neox gptj llama llama4 nemotron_h "
    "qwen2 qwen3"
)

#: By ``config.model_type``: names of modules; more than the attention projections where the authors adapted more.
TARGETS: dict[str, list[str]] = {
    **{model_type: ATTENTION_PROJECTIONS[model_type] for model_type in _AS_USUAL.split()},
    "bart": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "roberta": ["query", "key", "value", "dense"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
}
