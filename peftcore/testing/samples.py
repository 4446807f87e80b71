"""Samples: one small model for each kind of layer, in which the layer is called as real models call it.

Each model has a stem, two layers to adapt (``layers.0.target`` and ``layers.1.target``, mostly of different shapes)
and a head.
All sizes are even, and 4 divides most of them, for methods that cut weights into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: Tokens of a sequence.
TOKENS = 5
#: Tokens that there are.
VOCABULARY = 12


@dataclass(frozen=True)
class Sample:
    """A small model with layers of one kind.

    Attributes:
        name: What tests are called after.
        kind: The kind of the layers to adapt, as :class:`peftcore.base_layers.BaseLayer` names it; ``"module"`` for
            what only a method that takes any module adapts.
        build: Makes the model; its weights are drawn from torch's generator.
        inputs: Makes the model's input, with so many rows in front.
        targets: The keywords of a config that name the layers to adapt.
        plain: Whether whoever supports the kind must support this; a variant may be refused by a named error.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    targets: Mapping[str, Any] = field(default_factory=lambda: {"target_modules": ["target"]})
    plain: bool = True

    def model(self) -> nn.Module:
        """Make the model, in eval mode, always with the same weights; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            return self.build().eval()

    def batch(self, rows: int = 4, seed: int = 21) -> Tensor:
        """Make an input of so many rows, always the same for one seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.inputs(rows)


class Block(nn.Module):
    """Calls a layer with the hidden state."""

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the layer makes of the hidden state, bounded."""
        return torch.tanh(self.target(hidden))


class AttentionBlock(Block):
    """Calls ``nn.MultiheadAttention``, with the batch first or second as it wants it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Let the hidden state attend to itself."""
        batch_first = self.target.batch_first
        x = hidden if batch_first else hidden.transpose(0, 1)
        attended = self.target(x, x, x, need_weights=False)[0]
        return torch.tanh(attended if batch_first else attended.transpose(0, 1))


class SmallModel(nn.Module):
    """Runs a stem, the blocks one after another, and a head."""

    def __init__(self, stem: nn.Module, layers: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        blocks = [(AttentionBlock if isinstance(layer, nn.MultiheadAttention) else Block)(layer) for layer in layers]
        self.layers = nn.ModuleList(blocks)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output, with the rows of the batch in front."""
        hidden = self.stem(x)
        for block in self.layers:
            hidden = block(hidden)
        return self.head(hidden)


class TokenModel(SmallModel):
    """Looks its tokens up in every layer and joins what it finds."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output for token ids ``[rows, tokens]``."""
        return self.head(torch.cat([block(x) for block in self.layers], -1))


class Pool(nn.Module):
    """Averages over all places, ``[rows, channels, ...]`` to ``[rows, channels]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean; of no places, zero."""
        return x.flatten(2).mean(2)


class Conv1D(nn.Module):
    """A linear layer with its weight stored transposed, known to the core by the name of transformers' own."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features) / in_features**0.5)
        self.bias = nn.Parameter(torch.randn(out_features) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return x · weight + bias."""
        return x @ self.weight + self.bias


# So that the core takes it for transformers' layer, which would take seconds to import.
Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


class ScaledEmbedding(nn.Embedding):
    """An embedding that multiplies what it looks up."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the tokens' vectors, three times as long."""
        return super().forward(ids) * 3


class Matrix(nn.Module):
    """Multiplies by a bare parameter ``[out, in]``."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return x · matrixᵀ."""
        return nn.functional.linear(x, self.matrix)


class Experts(nn.Module):
    """Mixes three experts with stacked weights, ``[experts, out, in]`` or, if transposed, ``[experts, in, out]``."""

    def __init__(self, out_features: int, in_features: int, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        shape = (in_features, out_features) if is_transposed else (out_features, in_features)
        self.matrix = nn.Parameter(torch.randn(3, *shape) / in_features**0.5)
        self.router = nn.Linear(in_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the experts' outputs, weighted by the router."""
        equation = "...i,eio->...eo" if self.is_transposed else "...i,eoi->...eo"
        shares = self.router(x).softmax(-1)
        return (torch.einsum(equation, x, self.matrix) * shares.unsqueeze(-1)).sum(-2)


def _floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape)


def _tokens(rows: int) -> Tensor:
    # No two tokens of a row are equal, and all rows together hold most of them.
    order = [torch.randperm(VOCABULARY)[:TOKENS] for _ in range(rows)]
    return torch.stack(order) if order else torch.empty(0, TOKENS, dtype=torch.long)


def _linear(first: nn.Module, second: nn.Module) -> nn.Module:
    return SmallModel(nn.Linear(6, 12), [first, second], nn.Linear(12, 3))


def _attention(**options: Any) -> nn.Module:
    layers = [nn.MultiheadAttention(8, heads, **options) for heads in (2, 4)]
    return SmallModel(nn.Linear(6, 8), layers, nn.Linear(8, 3))


def _conv(conv: Callable[..., nn.Module], **options: Any) -> nn.Module:
    first = conv(4, 8, 3, padding=1, **options)
    second = conv(8, 12, 3, stride=2, bias=False)
    return SmallModel(conv(2, 4, 1), [first, second], nn.Sequential(Pool(), nn.Linear(12, 3)))


def _embedding(**options: Any) -> nn.Module:
    layers = [nn.Embedding(VOCABULARY, 8, **options), nn.Embedding(VOCABULARY, 12)]
    return TokenModel(nn.Identity(), layers, nn.Linear(20, 3))


def _parameters() -> dict[str, Any]:
    return {"target_parameters": ["target.matrix"]}


#: One plain sample of each kind, and the variants in which methods go wrong.
SAMPLES: tuple[Sample, ...] = (
    Sample("linear", "linear", lambda: _linear(nn.Linear(12, 8), nn.Linear(8, 12, bias=False)), _floats(6)),
    Sample("linear-tokens", "linear", lambda: _linear(nn.Linear(12, 12), nn.Linear(12, 12)), _floats(TOKENS, 6)),
    Sample("linear-transposed", "linear", lambda: _linear(Conv1D(8, 12), Conv1D(12, 8)), _floats(TOKENS, 6)),
    Sample("conv1d", "conv1d", lambda: _conv(nn.Conv1d), _floats(2, 9)),
    Sample("conv1d-groups", "conv1d", lambda: _conv(nn.Conv1d, groups=2), _floats(2, 9), plain=False),
    Sample("conv2d", "conv2d", lambda: _conv(nn.Conv2d), _floats(2, 7, 5)),
    Sample("conv2d-groups", "conv2d", lambda: _conv(nn.Conv2d, groups=2), _floats(2, 7, 5), plain=False),
    Sample(
        "conv2d-circular",
        "conv2d",
        lambda: _conv(nn.Conv2d, padding_mode="circular", dilation=1),
        _floats(2, 7, 5),
        plain=False,
    ),
    Sample("conv3d", "conv3d", lambda: _conv(nn.Conv3d), _floats(2, 5, 3, 4)),
    Sample("embedding", "embedding", _embedding, _tokens),
    Sample("embedding-padding", "embedding", lambda: _embedding(padding_idx=3), _tokens, plain=False),
    Sample(
        "embedding-scaled",
        "embedding",
        lambda: TokenModel(nn.Identity(), [ScaledEmbedding(VOCABULARY, 8) for _ in range(2)], nn.Linear(16, 3)),
        _tokens,
        plain=False,
    ),
    Sample("attention", "attention", lambda: _attention(batch_first=True), _floats(TOKENS, 6)),
    Sample("attention-batch-second", "attention", lambda: _attention(bias=False), _floats(TOKENS, 6), plain=False),
    Sample("parameter", "parameter", lambda: _linear(Matrix(8, 12), Matrix(12, 8)), _floats(6), _parameters()),
    Sample("experts", "parameter", lambda: _linear(Experts(8, 12), Experts(12, 8)), _floats(6), _parameters(), False),
    Sample(
        "experts-transposed",
        "parameter",
        lambda: _linear(Experts(8, 12, True), Experts(12, 8, True)),
        _floats(TOKENS, 6),
        _parameters(),
        plain=False,
    ),
    Sample("norm", "module", lambda: _linear(nn.LayerNorm(12), nn.RMSNorm(12)), _floats(TOKENS, 6)),
    Sample(
        "container",
        "module",
        lambda: _linear(nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8)), nn.Sequential(nn.Linear(8, 12))),
        _floats(6),
        plain=False,
    ),
)


class Bilinear(nn.Module):
    """A model whose target is a layer that no method can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the input with itself."""
        return self.target(x, x)


#: A layer that the core itself knows no view of.
UNKNOWN = Sample("bilinear", "unknown", Bilinear, _floats(4))
