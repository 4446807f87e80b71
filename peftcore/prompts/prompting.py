"""Prompting: lets the virtual tokens of the adapters that act take part in a model's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peftcore.call_state import CallState
from peftcore.exceptions import MixedBatchError
from peftcore.prompts.arguments import bound, remember, rewritten, rows_of
from peftcore.prompts.call import Assignment, PromptedCall, make_call
from peftcore.prompts.encoder import PromptEncoder
from peftcore.prompts.generation import Generation, named_inputs
from peftcore.prompts.sites import Site, sites_in


class Prompting(nn.Module):
    """The prompt adapters of one model: its children, by name.

    Args:
        model: The user's model.
        call_state: Its call state.
    """

    model: nn.Module
    _modules: dict[str, PromptEncoder]  # type: ignore[assignment]

    def __init__(self, model: nn.Module, call_state: CallState) -> None:
        super().__init__()
        # Kept out of the module tree: the model stands there already.
        self.__dict__["model"] = model
        self.call_state = call_state
        self.sites: list[Site] = []
        self.training = model.training

    def add(self, name: str, encoder: PromptEncoder) -> None:
        """Take an adapter in; the first one puts hooks on the model."""
        self._modules[name] = encoder.train(self.training)
        if not self.sites:
            self.sites = sites_in(self.model, self.call_state)

    def without(self, name: str) -> bool:
        """Let an adapter go, and say whether any is left; the last one takes the hooks off."""
        self._modules.pop(name, None)
        if not self._modules:
            for handle in (handle for site in self.sites for handle in site.handles):
                handle.remove()
            self.sites = []
        return bool(self._modules)

    def __getitem__(self, name: str) -> PromptEncoder:
        return self._modules[name]

    def call(self, active: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the model with the virtual tokens of the adapters that act.

        Args:
            active: The active adapters.
            args, kwargs: The call's.
        """
        arguments = bound(self.model, args, kwargs)
        declared = self._declared(arguments)
        call = self._call(active, arguments, declared)
        if call is None:
            return self.model(**arguments)
        arguments = rewritten(self.model, call, arguments, self._sizes())
        with self.call_state.prompting(call):
            output = self.model(**arguments)
        remember(output, call)
        if self.call_state.rows is None:
            layout = None if call.columns is None else call.columns.layout
            for encoder in self._acting(active):
                output = encoder.finish(output, {**arguments, **declared}, layout)
        return output

    def generate(
        self, generate: Callable[..., Any], active: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Let the model generate with the virtual tokens of the adapters that act.

        Args:
            generate: The model's own.
            active: The active adapters.
            args, kwargs: The call's.
        """
        arguments = named_inputs(self.model, args, kwargs)
        call = self._call(active, arguments, self._declared(arguments))
        if call is None:
            return generate(**arguments)
        generation = Generation(self.model, call, arguments, self._sizes())
        with self.call_state.prompting(call):
            return generation.finish(generate(**generation.arguments))

    def _declared(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take out of a call's arguments what the adapters' methods have declared."""
        names = {name for encoder in self._modules.values() for name in encoder.call_arguments}
        return {name: arguments.pop(name) for name in names if name in arguments}

    def _call(
        self, active: Sequence[str], arguments: Mapping[str, Any], declared: Mapping[str, Any]
    ) -> PromptedCall | None:
        state = self.call_state
        acting = self._acting(active)
        if not state.enabled or state.prompted is not None or (state.rows is None and not acting):
            return None
        rows, device = rows_of(arguments)
        groups: list[Assignment] = [(None, acting)]
        if state.rows is not None:
            asked = state.rows.groups(rows, device)
            groups = [(group.index, [self._modules[group.name]]) for group in asked if group.name in self._modules]
            if arguments.get("labels") is not None:
                _check_losses(groups)
        return make_call(groups, rows, device, declared) if groups else None

    def _acting(self, active: Sequence[str]) -> list[PromptEncoder]:
        return [self._modules[name] for name in active if name in self._modules]

    def _sizes(self) -> Any:
        return next(iter(self._modules.values())).sizes


def _check_losses(groups: Iterable[Assignment]) -> None:
    """Refuse a mixed batch with labels in which a method has a loss of its own, which is one of a whole batch."""
    for encoder in (encoder for _, encoders in groups for encoder in encoders):
        if type(encoder).finish is not PromptEncoder.finish:
            raise MixedBatchError(
                f"{type(encoder).__name__} has a loss of its own, which rows of a mixed batch can't have. Leave labels "
                "out, or call the model once for each adapter, without adapter_names."
            )
