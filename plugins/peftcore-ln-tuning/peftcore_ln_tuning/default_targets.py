"""The layers that LN tuning adapts in a transformers model when the config names none."""

from __future__ import annotations

from peftcore.targets.usual import by_model_type

_BLOCK = "input_layernorm post_attention_layernorm"

#: By ``config.model_type``: names of modules.
TARGETS = by_model_type(
    (f"{_BLOCK} norm", "llama mistral gemma"),
    (f"{_BLOCK} ln_f", "bloom falcon"),
    (f"{_BLOCK} pre_feedforward_layernorm post_feedforward_layernorm norm", "gemma2 gemma3_text"),
    ("post_attention_layernorm", "qwen2 qwen3"),
    ("input_layernorm final_layernorm", "phi"),
    ("layer_norm final_layer_norm", "t5 mt5"),
    ("self_attn_layer_norm encoder_attn_layer_norm final_layer_norm", "bart"),
    ("ln_1 ln_2 ln_f", "gpt2"),
    ("ln_1 ln_f", "gptj"),
    ("layernorm LayerNorm final_layer_norm self_attn_layer_norm", "blip-2"),
    # Beside the norms, what joins the image to the language, and both ends of the language model.
    (f"multi_modal_projector {_BLOCK} norm embed_tokens lm_head", "llava"),
)
