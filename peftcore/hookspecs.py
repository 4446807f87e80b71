"""Every hook that peftcore calls: what a plugin can take part in.

A plugin implements a hook by a function of the same name, marked with :data:`hookimpl`, at the top level of the module
that its entry point names.
It may leave out arguments that it does not need; it can't add any.

Methods stand in the entry-point group ``peftcore``, one entry point per method, and are imported when first used.
A plugin without a method (a quantisation backend, a table of default targets, a subcommand) stands in the group
``peftcore.extensions`` and is imported when one of its hooks is first asked.
A method's plugin may implement every hook too; it is asked once it is loaded.

An implementation that raises is named, with its plugin, in the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcore.base_layers.base import BaseLayer
    from peftcore.config import PeftConfig
    from peftcore.method import PeftMethod

PROJECT = "peftcore"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as the implementation of the hook of its name."""


@hookspec
def register_peft_method() -> PeftMethod | Sequence[PeftMethod]:  # type: ignore[empty-body]
    """Describe the method, or the methods, of this plugin.

    The registry calls it once, right after it has imported the plugin, when one of the plugin's methods is first used.
    Each method's name has to be the name of an entry point of the same distribution that names this module.

    Whatever goes wrong here is kept apart: the plugin's methods stay unusable, with a
    :class:`~peftcore.exceptions.PluginLoadError` that says why, and nothing of the plugin is registered.

    Returns:
        one :class:`~peftcore.method.PeftMethod`, or a list or tuple of them.

    Example::

        @hookimpl
        def register_peft_method() -> PeftMethod:
            return PeftMethod(config_cls=C3AConfig, adapter_cls=C3AAdapter)
    """


@hookspec(firstresult=True)
def adapt_base_layer(layer: nn.Module) -> BaseLayer | None:
    """Wrap a frozen layer of a class that the core does not know.

    The tuner calls it for each layer that a config targets, before the core's own kinds are tried, while it plans and
    before the model has changed.
    It must not change the layer.
    The first plugin that returns a base layer decides; from then on every method works on that class of layer.

    Args:
        layer: the layer as it stands in the model.

    Returns:
        the :class:`~peftcore.base_layers.base.BaseLayer` that reads and writes this layer, or None to pass.

    Example::

        @hookimpl
        def adapt_base_layer(layer):
            return PackedLinear(layer) if isinstance(layer, packed.Linear4) else None
    """


@hookspec(firstresult=True)
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Say which modules a method adapts when its config names none, for methods and models of others.

    A method's own table stands in its :class:`~peftcore.method.PeftMethod`, as ``default_targets``, and needs no hook.
    The tuner calls it when a config has no targets and the model states its ``config.model_type``.
    The first plugin that returns a sequence decides; if none does, the method's own table; if that does not have the
    model's type, the user is asked to name the targets.

    Args:
        method: the method's name, in lower case.
        model_type: as transformers has it (``"llama"``).

    Returns:
        patterns as in a config's ``target_modules``, or None to pass.

    Example::

        TABLE = {"my_architecture": ["query_proj", "value_proj"]}

        @hookimpl
        def default_target_modules(model_type):
            return TABLE.get(model_type)
    """


@hookspec(firstresult=True)
def convert_checkpoint(
    method: str, state: Mapping[str, Tensor], config: PeftConfig, source: str
) -> Mapping[str, Tensor] | None:
    """Bring tensors from an older or a foreign file format into this version's keys and shapes.

    The checkpoint reader calls it after reading a file, and ``set_peft_model_state_dict`` for what it is given, before
    keys are matched with the model.
    The first plugin that returns a state decides, and that state is then matched strictly.
    Neither ``state`` nor its tensors may be changed; a converter returns a new mapping.

    Args:
        method: the method's name, in lower case.
        state: the file's tensors by key.
        config: the config that the file came with.
        source: the file's path, for messages.

    Returns:
        the converted tensors by key, or None if this is no format that the plugin converts.

    Example::

        @hookimpl
        def convert_checkpoint(method, state):
            if method == "c3a" and any(key.endswith(".kernel") for key in state):
                return {key.replace(".kernel", ".c3a_kernel"): tensor for key, tensor in state.items()}
            return None
    """


@hookspec
def register_commands(cli: Any) -> None:
    """Add subcommands to the ``peftcore`` command.

    The command calls it once, for its help and for a subcommand that is not the core's own, on every extension and on
    every method's plugin that is loaded by then.
    A plugin that raises is named in a warning, and the command goes on without it.

    Args:
        cli: the :class:`typer.Typer` application that the subcommands are added to.

    Example::

        @hookimpl
        def register_commands(cli):
            @cli.command()
            def bench(path: str) -> None:
                "Time an adapter."
                print(time_adapter(path))
    """
