"""Every option of LoRA that both libraries have, on a model where it shows."""

from __future__ import annotations

from .harness import Case

CASES = {
    # Architectures.
    "decoder": Case("llama", target_modules=["q_proj", "v_proj"]),
    "decoder, default targets": Case("llama"),
    "gpt2": Case("gpt2", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    "encoder": Case("bert", target_modules=["query", "dense"]),
    "encoder, sequence classification": Case("bert", target_modules=["query", "value"], task_type="SEQ_CLS"),
    "encoder-decoder": Case("t5", target_modules=["q", "v", "wi", "wo"]),
    "vision": Case("vit", target_modules=["q_proj", "fc1", "projection"], modules_to_save=["classifier"]),
    "convolutional vision": Case("resnet", target_modules=["convolution"], modules_to_save=["classifier"]),
    "experts": Case(
        "mixtral", target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    ),
    "experts, one parameter": Case("mixtral", target_parameters=["mlp.experts.down_proj"], target_modules=[]),
    "qwen experts": Case("qwen3-moe", target_modules=["q_proj", "v_proj"], target_parameters=["experts.gate_up_proj"]),
    # Layers.
    "linear": Case("mlp", target_modules=["first", "second"]),
    "conv1d": Case("conv1d", target_modules=["plain", "strided", "pointwise"]),
    "conv2d": Case("conv2d", target_modules=["plain", "strided", "pointwise"]),
    "conv3d": Case("conv3d", target_modules=["plain", "strided"]),
    "embedding": Case("words", target_modules=["words", "head"]),
    "embedding, padding": Case("words-padded", target_modules=["words"]),
    "embedding, scaled gradients": Case("words-scaled", target_modules=["words"]),
    "embedding of a transformer": Case("llama", target_modules=["embed_tokens", "q_proj"]),
    "matrix parameter": Case("bare", target_parameters=["inner.matrix"], target_modules=[]),
    "stacked parameter": Case("bare", target_parameters=["inner.experts"], target_modules=["head"]),
    # Which layers.
    "regular expression": Case("llama", target_modules=r".*layers\.1\..*\.(q|gate)_proj"),
    "all-linear": Case("llama", target_modules="all-linear"),
    "all-linear, experts": Case("mixtral", target_modules="all-linear"),
    "all-linear, gpt2": Case("gpt2", target_modules="all-linear"),
    "all-linear, classifier": Case("bert", target_modules="all-linear", task_type="SEQ_CLS"),
    "exclude names": Case("llama", target_modules=["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.q_proj"]),
    "exclude expression": Case("llama", target_modules="all-linear", exclude_modules=r".*mlp.*"),
    "one layer": Case("llama", target_modules=["q_proj", "up_proj"], layers_to_transform=1),
    "some layers": Case("gpt2", target_modules=["c_attn"], layers_to_transform=[0], layers_pattern="h"),
    # How strong.
    "rank_pattern": Case(
        "llama",
        target_modules=["q_proj", "up_proj", "v_proj"],
        rank_pattern={"up_proj": 4, "layers.1.self_attn.q_proj": 1},
    ),
    "rank_pattern, expressions": Case(
        "llama",
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r"model\.layers\.\d+\.self_attn\.q_proj": 5, "^v_proj": 3},
    ),
    "rank_pattern, ends of names": Case(
        "llama",
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"proj": 7, "_proj": 6, "attn.v_proj": 5, "v_proj": 3},
    ),
    "alpha_pattern": Case(
        "llama", target_modules=["q_proj", "v_proj"], alpha_pattern={"q_proj": 10, r"layers\.1\.self_attn\.v_proj": 1}
    ),
    "rank and alpha pattern, rslora": Case(
        "bert",
        target_modules=["query", "value"],
        rank_pattern={"query": 4},
        alpha_pattern={"value": 7},
        use_rslora=True,
    ),
    "rslora": Case("mlp", target_modules=["first"], use_rslora=True, r=4),
    "fractional alpha": Case("mlp", target_modules=["first"], lora_alpha=0.5),
    "dropout": Case("mlp", target_modules=["first", "second"], lora_dropout=0.3),
    "fan_in_fan_out said wrongly": Case("mlp", target_modules=["first"], fan_in_fan_out=True),
    # What else trains.
    "lora_bias": Case("bert", target_modules=["query", "value"], lora_bias=True),
    "lora_bias, convolution": Case("conv2d", target_modules=["plain", "pointwise"], lora_bias=True),
    "bias all": Case("bert", target_modules=["query", "value"], bias="all"),
    "bias all, plain": Case("mlp", target_modules=["first"], bias="all"),
    "bias lora_only": Case("bert", target_modules=["query", "value"], bias="lora_only"),
    "bias lora_only, convolution": Case("conv1d", target_modules=["plain", "strided"], bias="lora_only"),
    "bias lora_only, gpt2": Case("gpt2", target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True),
    "modules_to_save": Case("mlp", target_modules=["first"], modules_to_save=["head", "norm"]),
    "modules_to_save, whole block": Case(
        "vit", target_modules=["q_proj"], modules_to_save=["layers.1.mlp", "classifier"]
    ),
    "modules_to_save, embeddings": Case(
        "llama", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "bias all, embedding targeted": Case("bert", target_modules=["word_embeddings", "query"], bias="all"),
    "bias all, parameters named alike": Case("t5", target_modules=["q"], bias="all"),
    "bias all, attention beside": Case("attention", target_modules=["head"], bias="all"),
    "bias all, parameter targeted": Case(
        "bare", target_modules=["head"], target_parameters=["inner.matrix"], bias="all"
    ),
    "bias all, module saved": Case("bert", target_modules=["query"], bias="all", modules_to_save=["classifier"]),
    "tokens, list": Case("llama", target_modules=["q_proj"], trainable_token_indices=[3, 4, 17]),
    "tokens, dict": Case("bert", target_modules=["query"], trainable_token_indices={"word_embeddings": [9, 3, 49]}),
    "tokens, tied": Case("llama-tied", target_modules=["q_proj"], trainable_token_indices=[3, 4, 17]),
    "tokens, tied, dict": Case("gpt2", target_modules=["c_attn"], trainable_token_indices={"wte": [5, 30]}),
    "tokens, tied encoder-decoder": Case("t5", target_modules=["q"], trainable_token_indices={"shared": [5, 30]}),
    "tokens, plain": Case("words", target_modules=["head"], trainable_token_indices={"words": [0, 19]}),
    # Tied weights.
    "tied, module saved": Case(
        "llama-tied", target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "tied, both modules saved": Case(
        "llama-tied", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True
    ),
}

#: An adapter on one of two layers that share a weight. Only forward can be compared: HF PEFT merges into the shared
#: weight, and so changes both layers (or, where both have the adapter, each of them twice).
TIED = {
    "tied embedding": Case("llama-tied", target_modules=["embed_tokens", "q_proj"]),
    "tied head": Case("llama-tied", target_modules=["lm_head", "q_proj"]),
    "tied embedding, tying asked for": Case(
        "llama-tied", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True
    ),
    "tied head, tying asked for": Case("llama-tied", target_modules=["lm_head", "q_proj"], ensure_weight_tying=True),
    "tied both, tying asked for": Case(
        "llama-tied", target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True
    ),
}

#: HF PEFT gives each grouped convolution an ungrouped A, and refuses to merge that.
GROUPED = {
    f"conv{dims}d, groups": Case(f"conv{dims}d", target_modules=["grouped", "depthwise"], r=6) for dims in (1, 2, 3)
}

#: HF PEFT can't merge it: it squeezes one dimension too few out of a kernel of size 1.
POINTWISE = {"conv3d, kernel of size 1": Case("conv3d", target_modules=["pointwise"])}

#: HF PEFT turns these targets into parameters when it puts the adapter in; here they are named as parameters.
REWRITTEN = {"router of experts": Case("mixtral", target_modules=["q_proj", "gate"])}

#: Where HF PEFT's forward contradicts its own merged weight; ours is the merged one in both.
MERGED_COUNTS = {
    # Its A has neither the dilation nor the padding mode of the convolution.
    "dilated": Case("conv-dilated", target_modules=["conv"]),
    "reflecting": Case("conv-reflecting", target_modules=["conv"]),
    # It shortens the vectors of the frozen weight alone.
    "embedding with max_norm": Case("words-normed", target_modules=["words"]),
}

#: HF PEFT adds the change of an attention's out_proj twice, forward and merged.
ATTENTION = {
    "batch first": Case("attention", target_modules=["attention", "head"]),
    "sequence first": Case("attention-sequence-first", target_modules=["attention"]),
}
