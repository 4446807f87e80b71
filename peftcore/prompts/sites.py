"""Sites: where in a model virtual tokens go in, as hooks on the modules that see them.

Ids stand for virtual tokens in what a model is called with, so masks, positions, pooling and generation treat these as
any others. Their embeddings are replaced where the ids are embedded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcore.call_state import CallState
from peftcore.prompts.arguments import takes
from peftcore.prompts.cache import cache_length
from peftcore.prompts.call import DECODER, MAIN, Side
from peftcore.prompts.sizes import input_embedding


class EmbeddingSite:
    """Replaces embeddings of virtual tokens in one part of a model.

    Args:
        part: The module that is called with the ids: the model, or its encoder or decoder.
        embedding: What embeds them.
        side: Which part it is.
        caches: Whether the part goes on from a cache.
        call_state: Tells what virtual tokens the current call has.
    """

    def __init__(self, part: nn.Module, embedding: nn.Module, side: Side, caches: bool, call_state: CallState) -> None:
        self.side = side
        self.caches = caches
        self.call_state = call_state
        self.handles: list[RemovableHandle] = [
            part.register_forward_pre_hook(self.open, with_kwargs=True),
            embedding.register_forward_hook(self.replace),
        ]

    def open(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where in the sequence the coming forward pass begins: behind what the cache holds."""
        call = self.call_state.prompted
        if call is not None and self.side in call.windows:
            cache = kwargs.get("past_key_values")
            call.windows[self.side].start = cache_length(call.cache if cache is None else cache) if self.caches else 0

    def replace(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the virtual tokens among what was embedded."""
        call = self.call_state.prompted
        return output if call is None else call.replaced(self.side, output)


class CacheSite:
    """Gives a prefix to a part of a model whose head does not take one.

    Args:
        backbone: The part.
        call_state: Tells what virtual tokens the current call has.
    """

    def __init__(self, backbone: nn.Module, call_state: CallState) -> None:
        self.call_state = call_state
        self.handles = [backbone.register_forward_pre_hook(self.give, with_kwargs=True)]

    def give(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the prefix to the coming forward pass."""
        call = self.call_state.prompted
        if call is None or call.cache is None or kwargs.get("past_key_values") is not None:
            return None
        return args, {**kwargs, "past_key_values": call.cache}


class OpeningSite:
    """Writes a prefix into the empty caches with which a decoder begins.

    Args:
        decoder: The decoder of an encoder-decoder model.
        call_state: Tells what virtual tokens the current call has.
    """

    def __init__(self, decoder: nn.Module, call_state: CallState) -> None:
        self.call_state = call_state
        self.handles = [decoder.register_forward_pre_hook(self.open, with_kwargs=True)]

    def open(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write the prefix, if generation has just begun, and count it in the places of what comes."""
        call, cache = self.call_state.prompted, kwargs.get("past_key_values")
        if call is None or call.opens is None or call.key_values is None or cache is None:
            return None
        if not cache_length(cache):
            tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
            call.opens(cache, len(tokens))
        places = kwargs.get("cache_position")  # of transformers before 5, whose generation counts them itself
        if places is None:
            return None
        return args, {**kwargs, "cache_position": places + call.key_values.used.shape[1]}


Site = EmbeddingSite | CacheSite | OpeningSite


def sites_in(model: nn.Module, call_state: CallState) -> list[Site]:
    """Put the hooks for virtual tokens on a model's parts.

    Args:
        model: The user's model.
        call_state: Tells what virtual tokens the current call has.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        sites: list[Site] = [EmbeddingSite(model, input_embedding(model), MAIN, True, call_state)]
        backbone = backbone_of(model)
        return sites if backbone is None else [*sites, CacheSite(backbone, call_state)]
    encoder, decoder = model.get_encoder(), model.get_decoder()  # type: ignore[operator]
    parts = ((encoder, MAIN, False), (decoder, DECODER, True))
    sites = [
        EmbeddingSite(part, input_embedding(part), side, caches, call_state)
        for part, side, caches in parts
        if takes(part, "input_ids")
    ]
    return [*sites, OpeningSite(decoder, call_state)]


def backbone_of(model: nn.Module) -> nn.Module | None:
    """Return the part of a model that takes a cache, if the model itself takes none and has such a part."""
    backbone = getattr(model, "base_model", None)
    if takes(model, "past_key_values") or not isinstance(backbone, nn.Module):
        return None
    return backbone if takes(backbone, "past_key_values") else None
