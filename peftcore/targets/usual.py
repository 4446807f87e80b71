"""What methods adapt in the usual transformers models when their config names no targets.

A method that adapts something else there writes a table of its own by :func:`by_model_type`, or changes an entry:
``{**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"]}``.
"""

from __future__ import annotations


def by_model_type(*rows: tuple[str, str]) -> dict[str, list[str]]:
    """Return names of modules by ``config.model_type``.

    Args:
        *rows: Names, and the types of models that have these; both separated by spaces.
    """
    return {model_type: names.split() for names, model_types in rows for model_type in model_types.split()}


#: By ``config.model_type``: the projections that most methods adapt, in most models attention's queries and values.
ATTENTION_PROJECTIONS = by_model_type(
    (
        "q_proj v_proj",
        "bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt qwen2 qwen3 stablelm",
    ),
    ("query value", "bert electra layoutlm roberta xlm-roberta"),
    ("query_key_value", "bloom chatglm falcon gpt_neox RefinedWeb RefinedWebModel"),
    ("q v", "mt5 t5"),
    ("q v q_proj v_proj", "blip-2"),
    ("c_attn", "gpt2 gpt_bigcode"),
    ("c_proj c_attn", "btlm"),
    ("q_proj k_proj v_proj o_proj", "nemotron_h"),
    ("q_proj v_proj fc1 fc2", "phi"),
    ("query_proj value_proj", "deberta-v2"),
    ("in_proj", "deberta"),
    ("qkv_proj", "codegen"),
    ("Wqkv", "mpt"),
    ("key value receptance output", "rwkv"),
    ("r_proj k_proj v_proj o_proj key value", "rwkv7"),
)
# The vision and audio towers have layers of the same names.
ATTENTION_PROJECTIONS["gemma4"] = ["*language_model.*.q_proj", "*language_model.*.v_proj"]

#: By ``config.model_type``: all projections of a block, of the models in which some methods adapt more than attention's
#: queries and values.
ALL_PROJECTIONS = by_model_type(
    ("q_proj k_proj v_proj out_proj fc1 fc2", "bart opt"),
    ("query_proj key_proj value_proj dense", "deberta-v2"),
    ("q k v o wi wo", "t5"),
    ("q k v o wi_0 wi_1 wo", "mt5"),
)
