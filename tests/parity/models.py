"""The tiny models of the parity tests: built from configs alone, with weights large enough for every error to show."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 50
HIDDEN = 16


def build(name: str) -> nn.Module:
    """Return a fresh copy of the model of this name; all copies have the same weights."""
    return copy.deepcopy(_made(name))


@functools.cache
def _made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]()
        with torch.no_grad():
            # Layers as transformers initialises them give outputs so small that an error would hide in the tolerance.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def inputs_for(model: nn.Module, rows: int = 4) -> dict[str, Tensor]:
    """Return what to call a model with, by keywords."""
    rng = torch.Generator().manual_seed(1)
    if hasattr(model, "example"):
        return model.example(rows, rng)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=rng)}
    ids = torch.randint(2, VOCABULARY, (rows, 6), generator=rng)
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    return {"input_ids": ids}


def answer(model: Any, base: nn.Module | None = None, **kwargs: Any) -> Tensor:
    """Return the one tensor that a model is asked for.

    Args:
        model: A model, adapted or not, by either library.
        base: The model that knows its inputs, if the one asked is a wrapper.
        **kwargs: For the call, such as ``adapter_names``.
    """
    with torch.no_grad():
        output = model(**inputs_for(model if base is None else base), **kwargs)
    return output if isinstance(output, Tensor) else output[0]


# ------------------------------------------------------------------------------------------ transformers


def _llama(**kwargs: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            **kwargs,
        )
    )


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
            use_cache=False,
        )
    )


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            num_labels=3,
        )
    )


def _t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            use_cache=False,
        )
    )


def _vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
    )


def _resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, HIDDEN], depths=[1, 1], layer_type="basic", num_labels=3
        )
    )


def _experts(config_cls: Any, model_cls: Any, **kwargs: Any) -> nn.Module:
    return model_cls(
        config_cls(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_experts_per_tok=2,
            max_position_embeddings=32,
            **kwargs,
        )
    )


def _mixtral() -> nn.Module:
    return _experts(
        transformers.MixtralConfig, transformers.MixtralForCausalLM, intermediate_size=24, num_local_experts=3
    )


def _qwen3_moe() -> nn.Module:
    return _experts(
        transformers.Qwen3MoeConfig,
        transformers.Qwen3MoeForCausalLM,
        num_experts=3,
        moe_intermediate_size=12,
        intermediate_size=24,
        head_dim=8,
        decoder_sparse_step=1,
    )


# --------------------------------------------------------------------------------------------- plain torch


class Plain(nn.Module):
    """A plain torch model that knows what to be called with."""

    def example(self, rows: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(rows, 8, generator=rng)}


class Mlp(Plain):
    """Layers with and without a bias, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.second = nn.Linear(12, 10, bias=False)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.norm(torch.tanh(self.first(x))))))


class Sparse(nn.Module):
    """A bare matrix [out, in] and stacked experts [experts, out, in] in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.experts = nn.Parameter(torch.randn(3, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,bi->bo", self.experts, torch.tanh(x @ self.matrix.T))


class Bare(Plain):
    """Parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Sparse()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


class Conv(Plain):
    """Convolutions over one, two or three dimensions, one after the other: strided, grouped, with padding in words."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.dims = dims
        self.plain = cls(4, 8, 3, padding="same")
        self.strided = cls(8, 8, 2, stride=2, padding=1, bias=False)
        self.grouped = cls(8, 6, 3, padding=1, groups=2)
        self.depthwise = cls(6, 6, 1, groups=6)
        self.pointwise = cls(6, 3, 1)

    def example(self, rows: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(rows, 4, *[5] * self.dims, generator=rng)}

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.plain, self.strided, self.grouped, self.depthwise):
            x = torch.tanh(layer(x))
        return self.pointwise(x).flatten(2).mean(2)


class OneConv(Plain):
    """A single convolution."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, **kwargs)

    def example(self, rows: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(rows, 4, 6, 6, generator=rng)}

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Words(Plain):
    """An embedding in front of a layer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8, **kwargs)
        self.head = nn.Linear(8, 3)

    def example(self, rows: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"ids": torch.randint(0, 20, (rows, 5), generator=rng)}

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids)))


class Attention(Plain):
    """torch's attention, with a layer behind it."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def example(self, rows: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(rows, 5, 8, generator=rng)}

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.batch_first:
            return self.head(self.attention(x, x, x, need_weights=False)[0])
        x = x.transpose(0, 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].transpose(0, 1))


BUILDERS = {
    "llama": _llama,
    "llama-tied": functools.partial(_llama, tie_word_embeddings=True),
    "gpt2": _gpt2,
    "bert": _bert,
    "t5": _t5,
    "vit": _vit,
    "resnet": _resnet,
    "mixtral": _mixtral,
    "qwen3-moe": _qwen3_moe,
    "mlp": Mlp,
    "bare": Bare,
    "conv1d": functools.partial(Conv, 1),
    "conv2d": functools.partial(Conv, 2),
    "conv3d": functools.partial(Conv, 3),
    "conv-dilated": functools.partial(OneConv, dilation=2),
    "conv-reflecting": functools.partial(OneConv, padding=1, padding_mode="reflect"),
    "words": Words,
    "words-padded": functools.partial(Words, padding_idx=3),
    "words-normed": functools.partial(Words, max_norm=1.0),
    "words-scaled": functools.partial(Words, scale_grad_by_freq=True),
    "attention": functools.partial(Attention, batch_first=True),
    "attention-sequence-first": functools.partial(Attention, batch_first=False),
}
