"""The modules that IA3 adapts in a transformers model when the config names none, and the feedforward ones of them."""

from __future__ import annotations

from peftcore.targets.usual import by_model_type

#: Attention's modules, the feedforward ones, and the types of models that have them.
_TABLE = (
    ("k v", "wo", "t5"),
    ("k v wi_1", "", "mt5"),
    ("c_attn", "mlp.c_proj", "gpt2 gpt_bigcode"),
    ("query_key_value", "mlp.dense_4h_to_h", "bloom"),
    ("query_key_value", "dense_4h_to_h", "falcon gpt_neox RefinedWeb RefinedWebModel"),
    ("key value", "output.dense", "bert roberta"),
    ("key_proj value_proj", "output.dense", "deberta-v2"),
    ("in_proj", "output.dense", "deberta"),
    ("q_proj k_proj", "fc2", "opt"),
    ("q_proj v_proj", "fc2", "bart phi"),
    ("q_proj v_proj", "fc_out", "gptj"),
    ("q_proj v_proj", "c_proj", "gpt_neo"),
    ("q_proj v_proj", "down_proj", "gemma gemma2 gemma3_text llama4 qwen2 qwen3"),
    ("k_proj v_proj", "down_proj", "llama mistral"),
    ("k_proj v_proj", "w2", "mixtral"),
)

#: By ``config.model_type``: names of the modules whose input is scaled.
FEEDFORWARD = by_model_type(*((feedforward, types) for _, feedforward, types in _TABLE))
#: By ``config.model_type``: names of all modules to adapt.
TARGETS = by_model_type(*((f"{attention} {feedforward}", types) for attention, feedforward, types in _TABLE))
