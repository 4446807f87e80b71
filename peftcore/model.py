"""PeftModel: what a user holds: a model, the adapters in it, and their files."""

from __future__ import annotations

import copy
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

from peftcore.adapted_model import AdaptedModel
from peftcore.checkpoint import LoadReport, adapter_state, are_large, writer_of
from peftcore.config import LayerConfig, PeftConfig
from peftcore.exceptions import AdapterNameError, ConfigError
from peftcore.files import read_tensors, write_directory
from peftcore.hub import SharedOnHub, resolve_directory
from peftcore.mixed_batches import assigned_rows
from peftcore.peft_type import TaskType
from peftcore.signatures import refuse_arguments, signed_as
from peftcore.status import LayerStatus, ModelStatus, count_parameters, layer_statuses, model_status, model_view
from peftcore.targets import ALL_LINEAR, OnUnmatched, TargetReport
from peftcore.tuner import Tuner
from peftcore.views import View, Viewed


class PeftModel(Viewed, SharedOnHub, nn.Module):
    """A model with adapters.

    Any attribute that is not listed here is the user's model's.

    Args:
        model: The user's model; its layers are replaced in place.
        peft_config: The first adapter's config; None for a model that gets its adapters later.
        adapter_name: The first adapter's name.
        autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.
        low_cpu_mem_usage: Make adapters on the meta device, for weights that are loaded right after.
        on_unmatched: What to do about targets that match nothing.

    Attributes:
        base_model: Holds the user's model (``base_model.model``) and the adapters.

    Raises:
        PeftCoreError: The config does not fit the model, which is as before then.
        TypeError: The model is a PeftModel already.
    """

    #: Keywords of ``forward`` and ``generate`` that peftcore takes for itself.
    special_peft_forward_args = frozenset({"adapter_names"})

    #: The class for each task; a subclass enters itself by its class line.
    _by_task: ClassVar[dict[TaskType | None, type[PeftModel]]] = {}

    def __init_subclass__(cls, task_type: TaskType | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if task_type is not None:
            PeftModel._by_task[task_type] = cls

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | None,
        adapter_name: str = "default",
        *,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        on_unmatched: OnUnmatched = "error",
    ) -> None:
        super().__init__()
        if isinstance(model, PeftModel):
            raise TypeError("The model is a PeftModel already; use its add_adapter() or load_adapter().")
        self.base_model = AdaptedModel.of(model)
        self.training = self.base_model.training = model.training
        self.__dict__["forward"] = signed_as(model.forward, functools.partial(type(self).forward, self))
        if peft_config is not None:
            self.add_adapter(
                adapter_name,
                peft_config,
                low_cpu_mem_usage=low_cpu_mem_usage,
                autocast_adapter_dtype=autocast_adapter_dtype,
                on_unmatched=on_unmatched,
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model.model, name)

    def get_base_model(self) -> nn.Module:
        """Return the user's model, with the adapters in it."""
        model: nn.Module = self.base_model.model
        return model

    # ---------------------------------------------------------------------------------------------- calls

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            *args, **kwargs: The user's model's own.
            adapter_names: One adapter's name per row of the batch, ``"__base__"`` for none.

        Raises:
            MixedBatchError: The names do not fit the batch or the model.
        """
        if adapter_names is None:
            return self.base_model(*args, **kwargs)
        with assigned_rows(self.base_model, adapter_names) as rows:
            output = self.base_model(*args, **kwargs)
            self.base_model.call_state.remember(rows, output)
            return output

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the model's own ``generate``; ``adapter_names`` as in :meth:`forward`, one per prompt."""
        if adapter_names is None:
            return self.base_model.generate(*args, **kwargs)
        with assigned_rows(self.base_model, adapter_names, generating=True):
            return self.base_model.generate(*args, **kwargs)

    # ------------------------------------------------------------------------------------------- adapters

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The adapters' configs by name."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order in which they act."""
        return self.base_model.active_adapters

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapter's name; a list if several are active or none is."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def active_peft_config(self) -> PeftConfig:
        """The first active adapter's config."""
        if not self.active_adapters:
            raise AdapterNameError("No adapter is active.")
        return self.peft_config[self.active_adapters[0]]

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        *,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        on_unmatched: OnUnmatched = "error",
    ) -> TargetReport[Any] | None:
        """Put a new adapter into the model; the first one becomes active.

        Args:
            adapter_name: A name that is not taken, without dots.
            peft_config: Its config; a copy is kept.
            low_cpu_mem_usage, autocast_adapter_dtype, on_unmatched: See the class.

        Returns:
            What was matched; None if the method has no targets.

        Raises:
            AdapterNameError, ConfigError, TargetError, UnknownMethodError: The model is as before.
        """
        if not isinstance(peft_config, PeftConfig):
            raise ConfigError(f"An adapter needs a PeftConfig, got {type(peft_config).__name__}.")
        return self.base_model.add_adapter(
            adapter_name,
            self._completed(peft_config),
            low_cpu_mem_usage=low_cpu_mem_usage,
            autocast_adapter_dtype=autocast_adapter_dtype,
            on_unmatched=on_unmatched,
        )

    def _completed(self, config: PeftConfig) -> PeftConfig:
        """Return the config with what the model and the task say; tasks add theirs."""
        return config

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one or several adapters active; see :meth:`AdaptedModel.set_adapter`."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out of the model; see :meth:`AdaptedModel.delete_adapter`."""
        self.base_model.delete_adapter(adapter_name)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Return a block in which the model gives the frozen model's own outputs."""
        return self.base_model.disable_adapter()

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Fold adapters into the frozen weights; see :meth:`AdaptedModel.merge_adapter`."""
        self.base_model.merge_adapter(adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Take out of the frozen weights what is merged."""
        self.base_model.unmerge_adapter()

    def update_and_allocate(self, global_step: int) -> None:
        """Let the active adapters' methods act after an optimizer's step; call it once per step."""
        self.base_model.update_and_allocate(global_step)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Fold adapters into the weights for good, return the model; see :meth:`AdaptedModel.merge_and_unload`."""
        return self.base_model.merge_and_unload(progressbar, safe_merge, adapter_names)

    def unload(self) -> nn.Module:
        """Take all adapters out and return the user's model as it was."""
        return self.base_model.unload()

    # ---------------------------------------------------------------------------------------------- status

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of parameters that train and of all."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, of how many."""
        trainable, total = count_parameters(self)
        share = 100 * trainable / total if total else 0.0
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def view(self) -> View:
        """Return the adapters, a line for each; ``print(model.base_model)`` shows the modules."""
        return model_view(self.base_model, self)

    def get_layer_status(self) -> list[LayerStatus]:
        """Return the state of each adapted layer."""
        return layer_statuses(self.base_model)

    def get_model_status(self) -> ModelStatus:
        """Return the state of all adapters together."""
        return model_status(self.base_model, self)

    # ----------------------------------------------------------------------------------------------- files

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
        max_shard_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters into a directory: ``"default"`` into itself, any other into a folder of its name.

        Args:
            save_directory: Made if need be.
            safe_serialization: False writes ``.bin`` files.
            selected_adapters: Which; all if None.
            is_main_process: False writes nothing.
            max_shard_size: Bytes; larger adapters are split over several files.
            **kwargs: Accepted for HF PEFT's callers where they ask for nothing.

        Raises:
            AdapterNameError: There is no such adapter.
            CheckpointError: The directory can't be written.
        """
        refuse_arguments("save_pretrained", kwargs, {"save_embedding_layers": ("auto", False), "repo_type": ("model",)})
        names = list(self.peft_config if selected_adapters is None else selected_adapters)
        tuners = [self.base_model.tuner(name) for name in names]
        if not is_main_process:
            return
        for tuner in tuners:
            directory = Path(save_directory) if tuner.name == "default" else Path(save_directory) / tuner.name
            write_directory(
                directory,
                adapter_state(tuner),
                self._config_for_file(tuner),
                writer_of(tuner.method.name),
                safe_serialization=safe_serialization,
                max_shard_size=max_shard_size,
            )

    def _config_for_file(self, tuner: Tuner) -> PeftConfig:
        """Return the config as other readers have to see it, with the targets that were chosen for the user by name."""
        written = type(tuner.config).from_dict(tuner.config.to_dict())
        written.inference_mode = True
        if isinstance(written, LayerConfig) and written.target_modules in (None, ALL_LINEAR):
            written.target_modules = tuner.target_names() or written.target_modules
        model = self.get_base_model()
        if written.base_model_name_or_path is None:
            written.base_model_name_or_path = getattr(model, "name_or_path", None) or None
        if written.task_type is None:
            written.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        return written

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        *,
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Put an adapter from a directory (or the hub) into a model.

        Args:
            model: The user's model.
            model_id: An adapter directory.
            adapter_name: What to call it.
            is_trainable: Whether it goes on training.
            config: Instead of the directory's.
            autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.
            **kwargs: As for :meth:`load_adapter`.

        Raises:
            CheckpointError, ConfigError, TargetError: See :meth:`load_adapter`; the model is as before.
        """
        directory = resolve_directory(model_id, kwargs)
        if config is None:
            config = PeftConfig.from_pretrained(directory)
        holder = cls.class_for(config)(model, None)
        kwargs["autocast_adapter_dtype"] = autocast_adapter_dtype
        holder.load_adapter(directory, adapter_name, is_trainable, config=config, **kwargs)
        return holder  # type: ignore[return-value]

    @classmethod
    def class_for(cls, config: PeftConfig) -> type[PeftModel]:
        """Return the class for a config's task; a subclass answers with itself."""
        importlib.import_module("peftcore.tasks")  # its classes enter themselves
        return PeftModel._by_task.get(config.task_type, PeftModel) if cls is PeftModel else cls

    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        *,
        config: PeftConfig | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        key_mapping: Mapping[str, str] | None = None,
        torch_device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> LoadReport:
        """Put an adapter from a directory (or the hub) into the model; the first one becomes active.

        The file's names decide: a target in the config that this model does not have is no error as long as every
        tensor of the file finds its place.

        Args:
            model_id: An adapter directory.
            adapter_name: What to call it.
            is_trainable: Whether it goes on training.
            config: Instead of the directory's.
            strict: Refuse missing, unexpected and wrongly shaped tensors; otherwise report them.
            ignore_mismatched_sizes: Leave wrongly shaped tensors as they were made.
            low_cpu_mem_usage: Make the adapter on the meta device and take the file's tensors themselves.
            autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.
            key_mapping: Regular expressions and what to write instead, for names from an older model.
            torch_device: Where the file is read to.
            **kwargs: The hub's: ``revision``, ``subfolder``, ``token``, ``cache_dir`` …

        Returns:
            What was loaded, missing and unexpected.

        Raises:
            CheckpointError: The files are missing, damaged, or do not fit. The model is as before.
            AdapterNameError, ConfigError, TargetError: As :meth:`add_adapter`.
        """
        directory = resolve_directory(model_id, kwargs)
        refuse_arguments("load_adapter", kwargs, {})
        config = PeftConfig.from_pretrained(directory) if config is None else copy.copy(config)
        config.inference_mode = not is_trainable
        self.base_model.check_new_name(adapter_name)
        state = read_tensors(directory, torch_device or "cpu")
        # Of modules on the meta device, everything has to be in the file.
        takes = low_cpu_mem_usage or (strict and not ignore_mismatched_sizes and are_large(state))
        return self.base_model.load(
            adapter_name,
            self._completed(config),
            state,
            source=str(directory),
            strict=strict,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            low_cpu_mem_usage=takes,
            autocast_adapter_dtype=autocast_adapter_dtype,
            key_mapping=key_mapping,
        )
