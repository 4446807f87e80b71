"""Tuner: one object per adapter, that puts it into the model, takes it out, and carries what spans layers.

It works in three steps, and only the last touches the model: plan the slots, make the adapter modules, put them in.
A method with nothing that spans layers needs no tuner of its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore import base_layers
from peftcore.adapters.base import Adapter
from peftcore.adapters.fused import FusedDelta
from peftcore.auxiliary import plan_auxiliary
from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.parameter import ParameterLayer
from peftcore.base_layers.rows import parts_of
from peftcore.building import adapter_dtype, has_unsaved_tensors, making_tensors_on, parameters_of, settle_dtype
from peftcore.call_state import CallState
from peftcore.collector import paused_collector
from peftcore.config import LayerConfig, PeftConfig
from peftcore.exceptions import ConfigError, UnsupportedLayerError
from peftcore.method import PeftMethod
from peftcore.progress import progress
from peftcore.registry import registry
from peftcore.slots import Placement, Slot, hold_shared, let_go_of_shared, one_view, place, take_out, unwrap
from peftcore.targets import Inventory, Match, ModuleMatcher, OnUnmatched, TargetReport, find_parameters, find_targets
from peftcore.tying import tie_adapters


class Tuner:
    """What an adapter is to the model that it stands in.

    Args:
        model: The user's model.
        name: The adapter's name.
        config: Its config.
        method: Its method.
    """

    #: Whether the adapter changes what goes into the model rather than its layers.
    changes_inputs: ClassVar[bool] = False
    #: Whether a file brings the adapter's tensors right after it is built.
    comes_from_file: bool = False
    #: What the names of tensors in layers start with in a file; a constant of the format.
    layer_prefix: ClassVar[str] = "base_model.model."

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, method: PeftMethod) -> None:
        self.model = model
        self.name = name
        self.config = config
        self.method = method
        #: The parts, made by build and put into the model by insert.
        self.placements: list[Placement] = []
        #: What the adapter holds once per model, or None.
        self.shared: nn.Module | None = None

    def build(
        self,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        on_unmatched: OnUnmatched = "error",
    ) -> TargetReport[Any] | None:
        """Plan and make everything, outside the model; returns the report of what was matched.

        Args:
            low_cpu_mem_usage: Make the modules on the meta device, for weights that are loaded right after.
            autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.
            on_unmatched: What to do about targets that match nothing.

        Raises:
            TargetError: The model does not have what the config names.
            ConfigError: The config does not go with a layer.
        """
        raise NotImplementedError

    def insert(self, call_state: CallState) -> None:
        """Put what was built into the model."""
        self.place_all(call_state)
        if self.shared is not None:
            hold_shared(self.placements, self.name, self.shared)

    def remove(self) -> None:
        """Take the adapter out of the model."""
        if self.shared is not None:
            let_go_of_shared(self.placements, self.name)
        self.take_all_out()

    def place_all(self, call_state: CallState) -> None:
        """Put the parts on their layers."""
        with paused_collector():
            for placement in progress(self.placements, "Placing adapters"):
                place(placement, self.name, call_state)

    def take_all_out(self) -> None:
        """Take the parts off their layers."""
        for placement in reversed(self.placements):
            take_out(placement, self.name)
        self.placements = []

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that hold the adapter's tensors: the shared state, then one per part."""
        if self.shared is not None:
            yield self.shared
        for placement in self.placements:
            yield placement.adapter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that train."""
        for module in self.modules():
            yield from parameters_of(module)

    def requires_grad_(self, trains: bool) -> None:
        """Let the adapter train, or hold it still."""
        for parameter in self.parameters():
            parameter.requires_grad_(trains)

    def saved_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (what the file's keys start with, module whose state stands under it)."""
        if self.shared is not None:
            yield "base_model.", self.shared
        for placement in self.placements:
            yield f"{self.layer_prefix}{placement.key}.", placement.adapter.saved_module()

    def derived_state(self) -> Mapping[str, Tensor]:
        """Return what the file holds beside, computed from the rest, by its names there; nothing as a rule."""
        return {}

    @contextmanager
    def settling(self, state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Load in this block, with a file's tensors as the adapter takes them; as they are, as a rule.

        The adapter is ready for them. If the block fails, it is as before.

        Raises:
            CheckpointError: The adapter can't work with them.
        """
        yield state

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take what no copying into :meth:`saved_modules` brings into place, once it is sure that everything fits.

        Args:
            state: The tensors by the file's names; some may be missing, or of another shape.
        """

    def target_names(self) -> set[str]:
        """Return names of the modules that the method's parts stand on, as short as they mean just these."""
        return set()

    def extra_loss(self) -> Tensor | None:
        """Return what the method adds to the task's loss, a scalar, or None."""
        return None

    def after_step(self, global_step: int) -> None:
        """Let the method act after an optimizer's step (a change of ranks, a ramp)."""


class LayerTuner(Tuner):
    """Puts one adapter module on each layer that the config means."""

    config: LayerConfig

    def __init__(self, model: nn.Module, name: str, config: PeftConfig, method: PeftMethod) -> None:
        if not isinstance(config, LayerConfig):
            raise ConfigError(
                f"{type(config).__name__} names no layers; the config of a method for layers derives from LayerConfig."
            )
        super().__init__(model, name, config, method)

    # ------------------------------------------------------------------------------------------------ plan

    def report(self) -> TargetReport[BaseLayer]:
        """Find out which modules the config means; changes nothing and complains of nothing."""
        config = self.config
        adapter_cls = self.adapter_cls()
        matcher = ModuleMatcher.from_config(config, self.default_targets(), may_be_empty=self._asks_for_more())
        return find_targets(
            self.model,
            matcher,
            adapt=self.view,
            unwrap=unwrap,
            supported=f"for {config.method}, kinds {', '.join(sorted(adapter_cls.kinds))} of {base_layers.SUPPORTED}",
        )

    def view(self, module: nn.Module) -> BaseLayer | None:
        """Return the view of a module, None if the method can't adapt it; to be overridden by a method for others."""
        base = view_of(module)
        return base if base is not None and self.adapter_cls().can_adapt(base) else None

    def adapter_cls(self) -> type[Adapter]:
        """Return the class of the method's adapter modules."""
        assert self.method.adapter_cls is not None, "a method without adapter_cls brings its own tuner"
        return self.method.adapter_cls

    def _asks_for_more(self) -> bool:
        """Whether no target module need be found: parameters are named, or an empty list leaves modules out."""
        config = self.config
        beside = config.modules_to_save or config.trainable_token_indices
        return bool(config.target_parameters or (config.target_modules == set() and beside))

    def default_targets(self) -> Sequence[str] | None:
        """Return what is adapted because the config names nothing, written as ``target_modules``; None if it does.

        Also None where nobody knows; to be overridden by a method that finds it in the model.
        """
        if self.config.target_modules is not None or self.config.exclude_modules or self.config.target_parameters:
            return None
        return registry.default_target_modules(self.method.name, model_type(self.model))

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots.

        Args:
            report: What the config means.
            on_unmatched: What to do about modules to save that the model does not have.

        Raises:
            TargetError: Parameters, modules to save or tokens that the model does not have.
        """
        layers: dict[int, Slot] = {}
        for match in report.matched:
            for slot in self._slots_of(match):
                layers.setdefault(id(slot.base.layer), slot)
        main = [*layers.values(), *self._parameter_slots()]
        if self.config.ensure_weight_tying:
            main = tie_adapters(self.model, main, self.config, self.view, self.make_adapter)
        slots = [*main, *plan_auxiliary(self.model, self.config, main, on_unmatched)]
        return [one_view(slot) for slot in slots]

    def _slots_of(self, match: Match[BaseLayer]) -> Iterator[Slot]:
        yield Slot(match.path, match.path, match.sites, match.layer, self._maker(match.path, match.parts))
        for attribute, inner in match.layer.inner_layers():
            path = f"{match.path}.{attribute}"
            key = f"{match.path}.base_layer.{attribute}"
            yield Slot(path, key, ((match.module, attribute),), inner, self._maker(match.path))

    def _parameter_slots(self) -> Iterator[Slot]:
        if not self.config.target_parameters:
            return
        found = find_parameters(self.model, self.config.target_parameters, unwrap=unwrap)
        found.check("error")
        by_owner: dict[int, list[Any]] = {}
        for match in found.matched:
            by_owner.setdefault(id(match.module), []).append(match)
        for matches in by_owner.values():
            for depth, match in enumerate(reversed(matches)):
                key = match.path + ".base_layer" * depth
                base = ParameterLayer(match.module, match.parameter)
                if not self.adapter_cls().can_adapt(base):
                    raise UnsupportedLayerError(
                        f"target_parameters: {match.name} is a bare parameter, which {self.config.method} can't adapt."
                    )
                yield Slot(match.path, key, match.sites, base, self._maker(match.name))

    def _maker(self, path: str, parts: Sequence[str] = ()) -> Callable[[BaseLayer], Adapter]:
        if parts:
            return lambda base: self._fused(path, parts, base)
        return lambda base: self.make_adapter(path, base)

    def make_adapter(self, path: str, base: BaseLayer) -> Adapter:
        """Make the adapter module for one layer; to be overridden by a tuner that has to know its adapters.

        Args:
            path: The layer's dotted path in the model.
            base: The layer's view.

        Raises:
            ConfigError: The config does not go with the layer.
        """
        return self.adapter_cls()(base, self.config.for_layer(path), self.shared)

    def _fused(self, path: str, parts: Sequence[str], base: BaseLayer) -> FusedDelta:
        parent, _, fused = path.rpartition(".")
        rows = parts_of(base, (self.config.canonical_modules or {})[fused])
        return FusedDelta(
            base,
            {alias: rows[alias] for alias in parts},
            lambda alias, part: self.make_adapter(f"{parent}.{alias}".lstrip("."), part),
        )

    def target_names(self) -> set[str]:
        """Return the last components of the adapted modules' paths if they mean just these modules, else the paths."""
        config = self.config
        paths = {p.path for p in self.placements if p.key == p.path and not (p.auxiliary or p.base.kind == "parameter")}
        names = {path.rpartition(".")[2] for path in paths}
        matcher = ModuleMatcher(
            names,
            config.exclude_modules,
            config.layers_to_transform,
            config.layers_pattern,
            modules_to_save=config.modules_to_save,
        )
        meant = {path for path in Inventory(self.model, unwrap).paths() if matcher.match(self.model, path)}
        return names if meant == paths else paths

    # ----------------------------------------------------------------------------------------- build, insert

    def build(
        self,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        on_unmatched: OnUnmatched = "error",
    ) -> TargetReport[BaseLayer]:
        """Plan and make everything, outside the model; see :meth:`Tuner.build`."""
        with paused_collector():
            report = self.report()
            # Defaults are nobody's explicit wish, so one that the model lacks is no error.
            asked_by_user = self.default_targets() is None
            report.check("warn" if on_unmatched == "error" and not asked_by_user else on_unmatched)
            slots = self.plan(report, on_unmatched)
            bases = [slot.base for slot in slots if not slot.auxiliary]
            self.shared = self.make_shared(bases, low_cpu_mem_usage, autocast_adapter_dtype)
            for device, on_device in itertools.groupby(slots, lambda slot: slot.base.device):
                self.placements += self._make_all(list(on_device), device, low_cpu_mem_usage, autocast_adapter_dtype)
        return report

    def make_shared(
        self, bases: Sequence[BaseLayer], low_cpu_mem_usage: bool = False, autocast_adapter_dtype: bool = True
    ) -> nn.Module | None:
        """Make what the adapter holds once per model, from all the layers that it is going to stand on.

        It is made where the first layer is, and in a dtype that is fine enough for all of them.
        """
        if self.method.shared_cls is None or not bases:
            return None
        shared: nn.Module | None = None
        if low_cpu_mem_usage:
            with making_tensors_on(torch.device("meta")):
                shared = self.method.shared_cls(self.config, bases)
        if shared is None or has_unsaved_tensors(shared):
            with making_tensors_on(bases[0].device):
                shared = self.method.shared_cls(self.config, bases)
        dtypes = {adapter_dtype(base.dtype, autocast_adapter_dtype) for base in bases}
        return shared.to(functools.reduce(torch.promote_types, dtypes))

    def _make_all(
        self, slots: Sequence[Slot], device: torch.device, low_cpu_mem_usage: bool, autocast_adapter_dtype: bool
    ) -> list[Placement]:
        made: dict[int, Adapter] = {}
        if low_cpu_mem_usage:
            with making_tensors_on(torch.device("meta")):
                emptied = [n for n, slot in enumerate(slots) if not (slot.auxiliary or slot.starts_from_values)]
                made = {number: slots[number].make(slots[number].base) for number in emptied}
            # What no file brings (indices, projections from a seed) has to be there from the start.
            made = {number: adapter for number, adapter in made.items() if not has_unsaved_tensors(adapter)}
            # Not in the block: there torch takes ten times as long to read an attribute of a tensor.
            for number, adapter in made.items():
                settle_dtype(adapter, slots[number].base.dtype, autocast_adapter_dtype)
        with making_tensors_on(device):
            rest = [number for number in range(len(slots)) if number not in made]
            for number in progress(rest, "Making adapters"):
                made[number] = self._make(slots[number], autocast_adapter_dtype)
        return [Placement.of(slot, made[number]) for number, slot in enumerate(slots)]

    def _make(self, slot: Slot, autocast_adapter_dtype: bool) -> Adapter:
        adapter = slot.make(slot.base)
        if not slot.auxiliary:
            settle_dtype(adapter, slot.base.dtype, autocast_adapter_dtype)
        return adapter


registry.default_tuner_cls = LayerTuner


def add_to_loss(output: Any, tuners: Sequence[Tuner]) -> None:
    """Add to a model's loss what tuners add; an output without a loss, as in inference, stays as it is."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        for tuner in tuners:
            extra = tuner.extra_loss()
            loss = loss if extra is None else loss + extra
        output.loss = loss


def model_type(model: nn.Module) -> str:
    """Return what a model's config calls its architecture, ``"custom"`` if it has none."""
    config = getattr(model, "config", None)
    found = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return found or "custom"


def view_of(layer: nn.Module) -> BaseLayer | None:
    """Return the view of a layer: a plugin's if one has it, else the core's own, else None."""
    return registry.adapt_base_layer(layer) or base_layers.adapt(layer)
