"""Projections: an attention module, as a prompt inside it sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftcore.exceptions import UnsupportedLayerError
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
    wanted: tuple[Names, ...] = USUAL
    if config.q_proj and config.k_proj and config.v_proj:
        wanted = (Names(config.q_proj, config.k_proj, config.v_proj, config.o_proj),)
    return next((names for names in wanted if _has_all(attention, names)), None)


def _has_all(attention: nn.Module, names: Names) -> bool:
    try:
        attrgetter(*filter(None, names))(attention)
    except AttributeError:
        return False
    return True


class Projections:
    """Queries, keys and values of one attention, and the way from its heads to its output.

    Its modules are asked for anew each time, since adapters may come to stand on them.

    Args:
        attention: The module.
        config: May say what it calls its projections, and how wide a head is.

    Attributes:
        width: Of what goes into the projections.
        heads: How many numbers queries have, ``heads · head_dim``; keys and values have ``groups``.

    Raises:
        UnsupportedLayerError: It has none, or they don't go together: whole heads, and as many queries for each key.
    """

    def __init__(self, attention: nn.Module, config: AdaptionPromptConfig) -> None:
        names, head_dim = names_in(attention, config), config.head_dim or getattr(attention, "head_dim", None)
        what, advice = type(attention).__name__, "Give q_proj, k_proj, v_proj, o_proj and head_dim in the config."
        if names is None or not isinstance(head_dim, int):
            missing = "projections" if names is None else "head_dim"
            raise UnsupportedLayerError(f"{what} shows no {missing}. {advice}")
        self.attention, self.names, self.head_dim = attention, names, head_dim
        self.is_fused = names.query == names.key
        self.width, self.groups = self._sizes(names.key)
        if not self.is_fused:
            self.heads = self._sizes(names.query)[1]
        else:
            self.heads = self.groups // 3 if names.output is None else self._sizes(names.output)[0]
            self.groups = (self.groups - self.heads) // 2
        if self.heads % head_dim or self.groups % head_dim or not self.groups or self.heads % self.groups:
            sizes = f"{self.heads} queries, {self.groups} keys and heads of {head_dim}"
            raise UnsupportedLayerError(f"{what}: {sizes} don't go together. {advice}")
        scaling = getattr(attention, "scaling", None)
        self.scaling = scaling if isinstance(scaling, float) else head_dim**-0.5
        # The architecture's own way to rotate, if it has one.
        module = sys.modules[type(attention).__module__]
        self.rotate: Callable[..., Any] = getattr(module, "apply_rotary_pos_emb", _rotate_halves)

    def _sizes(self, name: str) -> tuple[int, int]:
        view = view_of(unwrap(self.attention.get_submodule(name)))
        return (0, 0) if view is None else (view.in_features, view.out_features)

    def query(self, x: Tensor, positions: Any) -> Tensor:
        """Return the queries ``[rows, heads, length, head_dim]`` of tokens ``[rows, length, width]``.

        Args:
            x: What the attention is called with.
            positions: The cosines and sines by which queries are rotated; None where they are not.
        """
        query = self._by_heads(0, x, "q_norm")
        if not isinstance(positions, (tuple, list)):
            return query
        cosines, sines = positions
        turned = cosines.shape[-1]
        rotated: Tensor = self.rotate(query[..., :turned], query[:, :1, :, :turned], cosines, sines)[0]
        return rotated if turned == self.head_dim else torch.cat([rotated, query[..., turned:]], -1)

    def key_and_value(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[rows, heads, tokens, head_dim]`` of tokens, which have no position."""
        key, value = self._by_heads(1, prompt, "k_norm"), self._by_heads(2, prompt)
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

    def _by_heads(self, part: int, x: Tensor, norm: str = "") -> Tensor:
        """Return what a projection makes of tokens, by heads, after the norm that an attention may have for it."""
        made: Tensor = self.attention.get_submodule(self.names[part] or "")(x)
        if self.is_fused:
            made = torch.split(made, [self.heads, self.groups, self.groups], -1)[part]
        normalize: Any = getattr(self.attention, norm, None)
        if normalize is not None:
            made = normalize(_cut(made, normalize.weight.shape[-1])).flatten(2)
        return _cut(made, self.head_dim).transpose(1, 2)


def _cut(made: Tensor, width: int) -> Tensor:
    """Return ``[rows, length, features]`` as ``[rows, length, features / width, width]``."""
    return made.reshape(*made.shape[:2], made.shape[2] // width, width)


def _rotate_halves(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries by their positions, the first half of a head against the second (arXiv 2104.09864)."""
    first, second = query.chunk(2, -1)
    return query * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None], key
