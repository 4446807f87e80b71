"""Adaption prompts keep what every method promises, on attentions of several forms."""

import torch
from torch import nn

from peftcore.testing import LayerMethodTests, Sample

TOKENS, WIDTH, HEAD = 5, 8, 4


class Attention(nn.Module):
    """A causal attention with fewer keys than queries; rotated and with its weights returned, or plain."""

    head_dim = HEAD

    def __init__(self, heads=2, groups=1, bias=False):
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, heads * HEAD, bias)
        self.k_proj = nn.Linear(WIDTH, groups * HEAD, bias)
        self.v_proj = nn.Linear(WIDTH, groups * HEAD, bias)
        self.o_proj = nn.Linear(heads * HEAD, WIDTH, bias)

    def forward(self, hidden_states, position_embeddings=None):
        made = [make(hidden_states) for make in (self.q_proj, self.k_proj, self.v_proj)]
        query, key, value = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in made)
        if position_embeddings is not None:
            query, key = (rotated(part, *position_embeddings) for part in (query, key))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        output = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output if position_embeddings is None else (output, None)


class FusedAttention(nn.Module):
    """One projection for queries, keys and values."""

    head_dim = HEAD

    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states):
        parts = self.c_attn(hidden_states).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(attended.transpose(1, 2).flatten(2))


def rotated(x, cosines, sines):
    first, second = x.chunk(2, -1)
    return x * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]


class Block(nn.Module):
    def __init__(self, target, rotates):
        super().__init__()
        self.target, self.rotates = target, rotates

    def forward(self, hidden):
        if not self.rotates:
            return torch.tanh(hidden + self.target(hidden))
        angles = torch.arange(hidden.shape[1], dtype=hidden.dtype)[None, :, None] * torch.tensor([1.0, 0.1] * 2)
        cosines, sines = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        output, _ = self.target(hidden_states=hidden, position_embeddings=(cosines, sines))
        return torch.tanh(hidden + output)


class Model(nn.Module):
    def __init__(self, *targets, rotates=False):
        super().__init__()
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(Block(target, rotates) for target in targets)

    def forward(self, x):
        hidden = self.stem(x)
        for block in self.layers:
            hidden = block(hidden)
        return self.head(hidden)


def sample(name, build):
    return Sample(name, "module", build, lambda rows: torch.randn(rows, TOKENS, 6))


class TestAdaptionPrompt(LayerMethodTests):
    method = "adaption_prompt"
    configs = (
        {"adapter_len": 3, "adapter_layers": 2},
        {"adapter_len": 1, "adapter_layers": 2},
        {"adapter_len": 2, "adapter_layers": 1},
    )
    samples = (
        sample("grouped", lambda: Model(Attention(bias=True), Attention(heads=4, groups=2))),
        sample("rotated", lambda: Model(Attention(), Attention(), rotates=True)),
        sample("fused", lambda: Model(FusedAttention(), FusedAttention())),
    )


class TestFusedWithAnOutputProjection(LayerMethodTests):
    method = "adaption_prompt"
    names = {"q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "c_proj", "head_dim": 2}
    configs = (
        {"adapter_len": 3, "adapter_layers": 2, **names},
        {"adapter_len": 2, "adapter_layers": 1, **names},
    )
    samples = (sample("fused", lambda: Model(FusedAttention(), FusedAttention())),)
