"""AdaptedModel: a user's model and the adapters in it.

It holds one tuner per adapter and knows which adapters are active, so whatever concerns an adapter costs in proportion
to the layers that this adapter stands on: not to the model, and not to the other adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.selective import Selective
from peftcore.building import parameters_of
from peftcore.call_state import BASE, CallState
from peftcore.checkpoint import LoadReport, bring_to_layers, load_adapter_state, rename_keys, saved_tensors, with_prefix
from peftcore.collector import paused_collector
from peftcore.compatibility import check_together
from peftcore.config import PeftConfig
from peftcore.exceptions import AdapterNameError, NotMergeableError
from peftcore.merged_layers import merge_into_all
from peftcore.merging import check_mergeable
from peftcore.registry import registry
from peftcore.slots import Placement
from peftcore.targets import TargetReport
from peftcore.tuner import Tuner, add_to_loss
from peftcore.tying import shared_weights_apart
from peftcore.written_along import take_what_was_written_along

if TYPE_CHECKING:
    from peftcore.prompts.prompting import Prompting

#: Where a model that was adapted in place keeps its AdaptedModel; outside the module tree, which stays free of cycles.
_HOST = "_peftcore_adapted_model"
#: What can't stand in an adapter's name.
_ILLEGAL = frozenset("./\\\0")


class AdaptedModel(nn.Module):
    """A model with adapters in it; ``peft_model.base_model``.

    Attributes:
        model: The user's model, whose adapted layers stand in it.
        tuners: One per adapter, by name.
        call_state: What holds for the current call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.tuners: dict[str, Tuner] = {}
        self.call_state = CallState()
        self._active: tuple[str, ...] = ()
        #: Tuners of active adapters that add to the task's loss.
        self._adding_to_loss: tuple[Tuner, ...] = ()
        #: All adapted layers, in the order in which they came; the values mean nothing.
        self._layers: dict[AdaptedLayer, None] = {}
        #: Lets virtual tokens take part in calls; None without an adapter that has any.
        self.prompt_encoder: Prompting | None = None
        #: Parameters of the user's model that trained before it was adapted.
        self._trained_before: list[nn.Parameter] = []

    @classmethod
    def of(cls, model: nn.Module) -> AdaptedModel:
        """Return the one that a model was adapted by, or a new one for a model without adapters."""
        found = model.__dict__.get(_HOST)
        return found if isinstance(found, AdaptedModel) and found.model is model else cls(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's model; what active methods add to its loss is in the output's ``loss``, if it has one."""
        prompts = self.prompt_encoder
        output = self.model(*args, **kwargs) if prompts is None else prompts.call(self._active, args, kwargs)
        if self._adding_to_loss and self.call_state.enabled:
            add_to_loss(output, self._adding_to_loss)
        return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's model's own ``generate``."""
        generate: Callable[..., Any] = self.model.generate  # type: ignore[assignment]
        if self.prompt_encoder is None:
            return generate(*args, **kwargs)
        return self.prompt_encoder.generate(generate, self._active, args, kwargs)

    def update_and_allocate(self, global_step: int) -> None:
        """Let the active adapters' methods act after an optimizer's step; call it once per step.

        Args:
            global_step: The number of the step.
        """
        for name in self._active:
            self.tuners[name].after_step(global_step)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    # ------------------------------------------------------------------------------------------- adapters

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The adapters' configs by name."""
        return {name: tuner.config for name, tuner in self.tuners.items()}

    def tuner(self, name: str) -> Tuner:
        """Return an adapter's tuner.

        Raises:
            AdapterNameError: There is no such adapter.
        """
        if name not in self.tuners:
            raise AdapterNameError(
                f"There is no adapter {name!r}; the model has {', '.join(map(repr, self.tuners)) or 'none'}."
            )
        return self.tuners[name]

    def check_new_name(self, name: str) -> None:
        """Check that an adapter may be called so.

        Raises:
            AdapterNameError: It is taken, or no legal key.
        """
        if not isinstance(name, str) or not name or name == BASE or not _ILLEGAL.isdisjoint(name):
            raise AdapterNameError(
                f"{name!r} can't be an adapter's name: it must be a string, not empty, not {BASE!r}, and without dots "
                "and slashes, since it becomes a key in the model and a folder on the disk."
            )
        if name in self.tuners:
            raise AdapterNameError(f"The adapter {name!r} exists already. Delete it first, or choose another name.")

    def prepare(
        self, name: str, config: PeftConfig, *, comes_from_file: bool = False, **build: Any
    ) -> tuple[Tuner, TargetReport[Any] | None]:
        """Plan and make an adapter outside the model, which does not change.

        Args:
            name: The new adapter's name.
            config: Its config; a copy is kept.
            comes_from_file: Whether a file brings its tensors right after.
            **build: As :meth:`peftcore.tuner.Tuner.build` takes them.
        """
        self.check_new_name(name)
        config.validate()
        method = registry[str(config.peft_type)]
        tuner_cls = registry.find_tuner_class(method.name)
        tuner: Tuner = tuner_cls(self.model, name, copy.deepcopy(config), method)
        tuner.comes_from_file = comes_from_file
        with self._unmerged():
            return tuner, tuner.build(**build)

    def insert(self, tuner: Tuner) -> None:
        """Put a prepared adapter into the model; the first one becomes active and freezes the model."""
        if not self.tuners:
            self._freeze()
        tuner.insert(self.call_state)
        self.tuners[tuner.name] = tuner
        self._layers.update((placement.layer, None) for placement in tuner.placements)
        if tuner.changes_inputs:
            from peftcore.prompts.tuner import join  # a model without virtual tokens does without that room

            self.prompt_encoder = join(tuner, self.prompt_encoder, self.call_state)
        if any(placement.layer.merged for placement in tuner.placements):
            with shared_weights_apart(self.model):
                pass  # what has come may be computed from a frozen weight into which another layer has merged
        if self._active:
            tuner.requires_grad_(False)
        else:
            self.set_adapter(tuner.name)

    def add_adapter(self, name: str, config: PeftConfig, **build: Any) -> TargetReport[Any] | None:
        """Put a new adapter into the model; returns the report of what was matched.

        Raises:
            PeftCoreError: See :meth:`prepare`; the model is as before then.
        """
        with paused_collector():
            tuner, report = self.prepare(name, config, **build)
            self.insert(tuner)
        return report

    def load(
        self,
        name: str,
        config: PeftConfig,
        state: Mapping[str, Tensor],
        *,
        source: str = "",
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        key_mapping: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Put a new adapter with given tensors into the model; the arguments are those of ``PeftModel.load_adapter``.

        The tensors are loaded before anything in the model changes.
        """
        tuner, _ = self.prepare(
            name,
            config,
            comes_from_file=True,
            low_cpu_mem_usage=low_cpu_mem_usage,
            autocast_adapter_dtype=autocast_adapter_dtype,
            on_unmatched="ignore",
        )
        state = rename_keys(state, key_mapping or {}, tuner.layer_prefix)
        state = registry.convert_checkpoint(tuner.method.name, state, tuner.config, source) or state
        places = saved_tensors(tuner)
        report = load_adapter_state(
            tuner,
            take_what_was_written_along(tuner, with_prefix(state, tuner, places), places),
            strict=strict,
            assign=low_cpu_mem_usage,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        if low_cpu_mem_usage:
            bring_to_layers(tuner, report)
        self.insert(tuner)
        return report

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out; layers without any other adapter are the frozen ones again.

        If it was active alone, the first one left becomes active.
        """
        tuner = self.tuner(adapter_name)
        self._remove(tuner)
        del self.tuners[adapter_name]
        remaining = [active for active in self._active if active != adapter_name]
        was_active, self._active = adapter_name in self._active, tuple(remaining)
        self._adding_to_loss = tuple(other for other in self._adding_to_loss if other is not tuner)
        if not self.tuners:
            self._thaw()
        elif was_active and not remaining:
            self.set_adapter(next(iter(self.tuners)))

    def _remove(self, tuner: Tuner) -> None:
        layers = [placement.layer for placement in tuner.placements]
        tuner.remove()
        for layer in layers:
            if layer.is_bare():
                self._layers.pop(layer, None)
        if self.prompt_encoder is not None and not self.prompt_encoder.without(tuner.name):
            self.prompt_encoder = None

    def _freeze(self) -> None:
        self.model.__dict__[_HOST] = self
        self._trained_before = [parameter for parameter in parameters_of(self.model) if parameter.requires_grad]
        for parameter in self._trained_before:
            parameter.requires_grad_(False)

    def _thaw(self) -> None:
        for parameter in self._trained_before:
            parameter.requires_grad_(True)
        self._trained_before = []
        self.model.__dict__.pop(_HOST, None)

    # --------------------------------------------------------------------------------------- what is active

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order in which they act."""
        return list(self._active)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one or several adapters active, in this order; they train, all others do not.

        Args:
            adapter_name: One name, or several.
            inference_mode: Activate without training.

        Raises:
            AdapterNameError: There is no such adapter.
            CompositionError: They can't be active together.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(dict.fromkeys(adapter_name))
        tuners = [self.tuner(name) for name in names]
        layers = self._layers_of([*self._active, *names])
        check_together(tuners, layers)
        for name in self._active:
            if name in self.tuners:
                self.tuners[name].requires_grad_(False)
        for layer in layers:
            layer.activate(names)
        for tuner in tuners:
            tuner.requires_grad_(not (inference_mode or tuner.config.inference_mode))
        self._active = tuple(names)
        self._adding_to_loss = tuple(tuner for tuner in tuners if type(tuner).extra_loss is not Tuner.extra_loss)

    def _layers_of(self, names: Iterable[str]) -> list[AdaptedLayer]:
        """Return the adapted layers on which any of these adapters stands, each once."""
        layers: dict[int, AdaptedLayer] = {}
        for name in dict.fromkeys(names):
            if name in self.tuners:
                layers.update((id(placement.layer), placement.layer) for placement in self.tuners[name].placements)
        return list(layers.values())

    def layers(self) -> tuple[AdaptedLayer, ...]:
        """Return all adapted layers, in the order in which they came."""
        return tuple(self._layers)

    def placements(self) -> Iterator[tuple[str, Placement]]:
        """Yield (adapter's name, part) for every part of every adapter."""
        for name, tuner in self.tuners.items():
            yield from ((name, placement) for placement in tuner.placements)

    # -------------------------------------------------------------------------------------------- merging

    def merge_adapter(
        self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False, progressbar: bool = False
    ) -> None:
        """Fold adapters into the frozen weights; see :meth:`peftcore.adapted_layer.AdaptedLayer.merge`.

        Args:
            adapter_names: Which, in order; the active ones if None.
            safe_merge: Refuse weights that would not be finite.
            progressbar: Show the progress from the start; else it is shown where it takes long on a terminal.

        Raises:
            NotMergeableError: A method can't be merged; nothing was merged then.
            MergeError: A weight would not be finite; nothing was merged then.
        """
        names = list(self._active if adapter_names is None else adapter_names)
        for name in names:
            self._check_mergeable(self.tuner(name))
        with shared_weights_apart(self.model, names):
            merge_into_all(self._layers_of(names), names, safe_merge, progressbar)

    @staticmethod
    def _check_mergeable(tuner: Tuner) -> None:
        if tuner.changes_inputs:
            raise NotMergeableError(
                f"Adapter {tuner.name!r} ({tuner.method.name}) changes the model's inputs, which no weight can hold."
            )
        for placement in tuner.placements:
            check_mergeable([placement.adapter])

    def unmerge_adapter(self) -> None:
        """Take out of the frozen weights what is merged."""
        for layer in reversed(self.layers()):
            layer.unmerge()

    @contextmanager
    def _unmerged(self) -> Iterator[None]:
        """Take out what is merged for the time of the block, in which the frozen weights may be read."""
        merged = [(layer, layer.merged_adapters) for layer in self.layers() if layer.merged]
        for layer, _ in reversed(merged):
            layer.unmerge()
        try:
            yield
        finally:
            for layer, names in merged:
                layer.merge_again(names)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Give the frozen model's own outputs for the time of the block; what is merged is taken out and put back."""
        with self._unmerged(), self.call_state.disabled():
            yield

    def unload(self) -> nn.Module:
        """Take all adapters out and return the user's model as it was."""
        self.unmerge_adapter()
        self._active = self._adding_to_loss = ()
        for name in list(self.tuners):
            self._remove(self.tuners.pop(name))
        self._thaw()
        return self.model

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Fold adapters into the weights for good, take the adapters out, and return the user's model.

        Args:
            progressbar: As for :meth:`merge_adapter`.
            safe_merge: Refuse weights that would not be finite.
            adapter_names: Which; the active ones if None.

        Raises:
            NotMergeableError, MergeError: As :meth:`merge_adapter`.
        """
        names = list(self._active if adapter_names is None else adapter_names)
        self.merge_adapter(names, safe_merge, progressbar)
        placements = [placement for name in names for placement in self.tuners[name].placements]
        replaced = [(p, p.adapter) for p in placements if isinstance(p.adapter, Selective) and p.adapter.replaces_layer]
        for layer in self.layers():
            layer.keep_merged()
        model = self.unload()
        for placement, adapter in replaced:
            for parent, attribute in placement.sites:
                parent._modules[attribute] = adapter.settle()
        return model
