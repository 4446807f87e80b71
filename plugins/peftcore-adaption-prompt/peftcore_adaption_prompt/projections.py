"""Projections: an attention module, as a prompt inside it sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftcore.slots import unwrap
from peftcore.tuner import view_of
from peftcore_adaption_prompt.config import AdaptionPromptConfig


class Names(NamedTuple):
    """What an attention calls its projections; one name for query, key and value means one fused module."""

    query: str
    key: str
    value: str
    output: str | None


#: The usual names. GPT-2's output projection is passed by, as HF PEFT does: files mean the same there and here.
USUAL = (
    Names("q_proj", "k_proj", "v_proj", "o_proj"),
    Names("q_proj", "k_proj", "v_proj", "out_proj"),
    Names("c_attn", "c_attn", "c_attn", None),
)


def names_in(attention: nn.Module, config: AdaptionPromptConfig) -> Names | None:
    """Return what a module calls its projections, as the config says or as usual; None if it has none such."""
    told = config.q_proj, config.k_proj, config.v_proj
    wanted = (Names(*told, config.o_proj),) if None not in told else USUAL  # type: ignore[arg-type]
    return next((names for names in wanted if all(_has(attention, name) for name in names if name)), None)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


class Projections:
    """Queries, keys and values of one attention, and the way from its heads to its output.

    Its modules are asked for anew each time, since adapters may come to stand on them.

    Args:
        attention: The module.
        names: What it calls its projections.
        head_dim: Width of a head.

    Attributes:
        width: Of what goes into the projections.
        heads: How many numbers queries have, ``heads · head_dim``; keys and values have ``groups``.
    """

    def __init__(self, attention: nn.Module, names: Names, head_dim: int) -> None:
        self.attention, self.names, self.head_dim = attention, names, head_dim
        self.width, made = self._sizes(names.key)
        if names.query != names.key:
            self.heads, self.groups = self._sizes(names.query)[1], made
        else:
            self.heads = made // 3 if names.output is None else self._sizes(names.output)[0]
            self.groups = (made - self.heads) // 2
        scaling = getattr(attention, "scaling", None)
        self.scaling = scaling if isinstance(scaling, float) else head_dim**-0.5
        # The architecture's own way to rotate, if it has one.
        module = sys.modules[type(attention).__module__]
        self.rotate: Callable[..., Any] = getattr(module, "apply_rotary_pos_emb", _rotate_halves)

    def fits(self) -> bool:
        """Whether the sizes go together: whole heads, and as many queries for each key."""
        return not (
            self.heads % self.head_dim or self.groups % self.head_dim or self.groups == 0 or self.heads % self.groups
        )

    def _sizes(self, name: str) -> tuple[int, int]:
        view = view_of(unwrap(self.attention.get_submodule(name)))
        return (0, 0) if view is None else (view.in_features, view.out_features)

    def query(self, x: Tensor, positions: Any) -> Tensor:
        """Return the queries ``[rows, heads, length, head_dim]`` of tokens ``[rows, length, width]``.

        Args:
            x: What the attention is called with.
            positions: The cosines and sines by which queries are rotated; None where they are not.
        """
        query = self._split(self._made(self.names.query, x, 0), "q_norm")
        if not isinstance(positions, (tuple, list)):
            return query
        cosines, sines = positions
        turned = cosines.shape[-1]
        rotated: Tensor = self.rotate(query[..., :turned], query[:, :1, :, :turned], cosines, sines)[0]
        return torch.cat([rotated, query[..., turned:]], -1)

    def key_and_value(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[rows, heads, tokens, head_dim]`` of tokens, which have no position."""
        key = self._split(self._made(self.names.key, prompt, 1), "k_norm")
        value = self._split(self._made(self.names.value, prompt, 2))
        times = self.heads // self.groups
        return key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)

    def output(self, heads: Tensor) -> Tensor:
        """Return what ``[rows, heads, length, head_dim]`` adds to the attention's output."""
        joined = heads.transpose(1, 2).flatten(2)
        if self.names.output is None:
            return joined
        project = self.attention.get_submodule(self.names.output)
        # The bias is in the attention's own output already.
        change: Tensor = project(joined) - project(joined.new_zeros(1, 1, self.heads))
        return change

    def _made(self, name: str, x: Tensor, part: int) -> Tensor:
        """Return what a projection makes of tokens; of a fused one, its part."""
        made: Tensor = self.attention.get_submodule(name)(x)
        if self.names.query != self.names.key:
            return made
        return torch.split(made, [self.heads, self.groups, self.groups], -1)[part]

    def _split(self, made: Tensor, norm: str = "") -> Tensor:
        """Return ``[rows, length, heads · head_dim]`` by heads, after the norm that an attention may have for them."""
        normalize = getattr(self.attention, norm, None)
        if isinstance(normalize, nn.Module):
            made = normalize(_cut(made, int(normalize.weight.shape[-1]))).flatten(2)  # type: ignore[index]
        return _cut(made, self.head_dim).transpose(1, 2)


def _cut(made: Tensor, width: int) -> Tensor:
    """Return ``[rows, length, features]`` as ``[rows, length, features / width, width]``."""
    return made.reshape(*made.shape[:2], made.shape[2] // width, width)


def _rotate_halves(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries by their positions, the first half of a head against the second (arXiv 2104.09864)."""
    first, second = query.chunk(2, -1)
    return query * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None], key
