"""OSF for peftcore: a weight's weak singular directions train, orthogonally to its strong ones (arXiv 2504.07097)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import by_model_type
from peftcore_osf.adapter import OsfAdapter
from peftcore_osf.config import OsfConfig

__all__ = ["OsfAdapter", "OsfConfig"]

_TARGETS = by_model_type(
    (
        "q_proj k_proj v_proj o_proj gate_proj down_proj up_proj",
        "gemma gemma2 gemma3_text llama llama4 mistral mixtral phi qwen2 qwen3",
    ),
    ("query_key_value dense_4h_to_h", "bloom falcon gpt_neox"),
    ("c_attn c_proj", "gpt2 gpt_bigcode"),
    ("q_proj k_proj v_proj out_proj fc1 fc2", "opt"),
    ("q_proj k_proj v_proj out_proj fc_in fc_out", "gptj"),
)


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=OsfConfig, adapter_cls=OsfAdapter, default_targets=_TARGETS, paper="2504.07097")
