"""The attention projections of the usual transformers models, for methods whose config names no targets."""

from __future__ import annotations

_MODEL_TYPES_BY_TARGETS = {
    "q_proj v_proj": "bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt qwen2 qwen3 stablelm",
    "query value": "bert electra layoutlm roberta xlm-roberta",
    "query_key_value": "bloom chatglm falcon gpt_neox RefinedWeb RefinedWebModel",
    "q v": "mt5 t5",
    "q v q_proj v_proj": "blip-2",
    "c_attn": "gpt2 gpt_bigcode",
    "c_proj c_attn": "btlm",
    "q_proj k_proj v_proj o_proj": "nemotron_h",
    "q_proj v_proj fc1 fc2": "phi",
    "query_proj value_proj": "deberta-v2",
    "in_proj": "deberta",
    "qkv_proj": "codegen",
    "Wqkv": "mpt",
    "key value receptance output": "rwkv",
    "r_proj k_proj v_proj o_proj key value": "rwkv7",
}

#: By ``config.model_type``: names of modules.
ATTENTION_PROJECTIONS: dict[str, list[str]] = {
    model_type: targets.split()
    for targets, model_types in _MODEL_TYPES_BY_TARGETS.items()
    for model_type in model_types.split()
}
# The vision and audio towers have layers of the same names.
ATTENTION_PROJECTIONS["gemma4"] = ["*language_model.*.q_proj", "*language_model.*.v_proj"]
