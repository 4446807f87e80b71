"""PromptTuner: what an adapter of virtual tokens is to its model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from peftcore.auxiliary import plan_modules_to_save
from peftcore.building import adapter_dtype, making_tensors_on
from peftcore.call_state import CallState
from peftcore.exceptions import ConfigError, TaskError
from peftcore.method import PeftMethod
from peftcore.prompts.arguments import takes
from peftcore.prompts.config import PromptConfig
from peftcore.prompts.encoder import PromptEncoder
from peftcore.prompts.prompting import Prompting
from peftcore.prompts.sites import backbone_of
from peftcore.prompts.sizes import PromptSizes, input_embedding, prompt_sizes
from peftcore.registry import registry
from peftcore.slots import Placement, one_view, unwrap
from peftcore.targets import OnUnmatched
from peftcore.tuner import Tuner


class PromptTuner(Tuner):
    """Puts virtual tokens into a model, and the modules that train beside them."""

    config: PromptConfig
    changes_inputs: ClassVar[bool] = True
    #: HF PEFT's prompt methods hold the user's model directly.
    layer_prefix: ClassVar[str] = "base_model."

    def __init__(self, model: nn.Module, name: str, config: PromptConfig, method: PeftMethod) -> None:
        if not isinstance(config, PromptConfig):
            raise ConfigError(
                f"{type(config).__name__} is no PromptConfig, from which the config of a prompt method derives."
            )
        super().__init__(model, name, config, method)

    @property
    def encoder(self) -> PromptEncoder:
        """What makes the virtual tokens."""
        assert isinstance(self.shared, PromptEncoder), "the encoder is made by build"
        return self.shared

    def build(
        self,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        on_unmatched: OnUnmatched = "error",
    ) -> None:
        """Make the encoder and the modules that train beside it; see :meth:`Tuner.build`.

        Virtual tokens are few, so ``low_cpu_mem_usage`` changes nothing.

        Raises:
            TaskError: The model has no place for virtual tokens.
            ConfigError: The config's sizes are not the model's.
        """
        sizes = prompt_sizes(self.model)
        encoder_cls = self.method.encoder_cls
        assert encoder_cls is not None, "a method without encoder_cls brings its own tuner"
        _check_place(self.model, encoder_cls)
        self.config = _completed(self.config, sizes, encoder_cls)
        vars(self.config)["comes_from_file"] = self.comes_from_file
        weight = getattr(unwrap(input_embedding(self.model)), "weight", next(self.model.parameters()))
        with making_tensors_on(weight.device):
            encoder = encoder_cls(self.config, sizes, self.model)
        self.shared = encoder.to(adapter_dtype(weight.dtype, autocast_adapter_dtype))
        for slot in plan_modules_to_save(self.model, self.config.modules_to_save or (), on_unmatched):
            slot = one_view(slot)
            self.placements.append(Placement.of(slot, slot.make(slot.base)))

    def insert(self, call_state: CallState) -> None:
        """Put the modules that train beside the encoder into the model; the encoder acts on its calls."""
        self.place_all(call_state)

    def remove(self) -> None:
        """Take these modules out of the model."""
        self.take_all_out()

    def saved_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (prefix of the file's keys, module whose state stands under it)."""
        yield "", self.encoder.saved_module()
        for placement in self.placements:
            yield f"{self.layer_prefix}{placement.key}.", placement.adapter.saved_module()

    def derived_state(self) -> Mapping[str, Tensor]:
        """Return what the encoder's file holds beside its own state."""
        return self.encoder.derived_state()

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Let the encoder take what its saved module only copies."""
        self.encoder.before_load(state)

    @contextmanager
    def settling(self, state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Load in this block; see :meth:`Tuner.settling`. The encoder may take another form for what a file holds."""
        before = {name: dict(held) if type(held) is dict else held for name, held in vars(self.encoder).items()}
        try:
            yield self.encoder.settle_state(state)
        except Exception:
            vars(self.encoder).clear()
            vars(self.encoder).update(before)
            raise


def _check_place(model: nn.Module, encoder_cls: type[PromptEncoder]) -> None:
    """Refuse a prefix where nothing takes one."""
    if encoder_cls.makes_prefix() and not takes(model, "past_key_values") and backbone_of(model) is None:
        raise TaskError(
            f"{encoder_cls.__name__} puts keys and values into a cache, and {type(model).__name__} takes none "
            "(past_key_values). Use a method whose virtual tokens are embeddings."
        )


def _completed(config: PromptConfig, sizes: PromptSizes, encoder_cls: type[PromptEncoder]) -> PromptConfig:
    """Return the config with the model's sizes; what it says itself has to agree with them."""
    completed = copy.copy(config)
    binding = ("token_dim", "num_attention_heads", "num_layers") if encoder_cls.makes_prefix() else ("token_dim",)
    for name, value in encoder_cls.sizes_in_config(sizes).items():
        said = getattr(config, name)
        if said is not None and said != value and name in binding:
            config.refuse(
                name, f"is {said}, and the model's is {value}: the adapter is another model's, or leave it out"
            )
        if said is None:
            setattr(completed, name, value)
    if completed.num_transformer_submodules == 2 and not sizes.is_encoder_decoder:
        config.refuse("num_transformer_submodules", "can be 2 for an encoder-decoder model alone")
    number = completed.num_virtual_tokens or 0
    if sizes.positions is not None and number >= sizes.positions:
        config.refuse("num_virtual_tokens", f"is {number}, and the model has {sizes.positions} positions in all")
    return completed


def join(tuner: Tuner, others: Prompting | None, call_state: CallState) -> Prompting:
    """Let an adapter that changes inputs take part in its model's calls; the first one makes what it takes part in."""
    assert isinstance(tuner, PromptTuner), "no other tuner changes inputs"
    prompting = others or Prompting(tuner.model, call_state)
    prompting.add(tuner.name, tuner.encoder)
    return prompting


registry.prompt_tuner_cls = PromptTuner
