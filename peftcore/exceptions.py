"""Every error that peftcore raises on purpose.

Each class says when it is raised; each message names what was wrong, where, and what to do next.
Whatever raises one of these leaves the model, the files and the registry as they were.
All of them are :class:`PeftCoreError`, and each is also the built-in exception that a caller would expect.
"""

from __future__ import annotations


class PeftCoreError(Exception):
    """Base of all errors that peftcore raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show its message quoted; ours are sentences.
        return Exception.__str__(self)


# ----------------------------------------------------------------------------------------------- plugins


class UnknownMethodError(PeftCoreError, ValueError, KeyError):
    """A method was named that no installed plugin provides."""


class PluginError(PeftCoreError, RuntimeError):
    """A plugin was found but can't serve; the other methods are not affected."""


class PluginLoadError(PluginError):
    """A plugin failed while it was imported, or returned something that is no method."""


class PluginConflictError(PluginError):
    """Two installed distributions claim the same method name."""


class PluginDisabledError(PluginError):
    """The method's plugin is switched off by ``PEFTCORE_DISABLED_PLUGINS``."""


class RegistrationError(PeftCoreError, ValueError):
    """A method contradicts itself or one that is registered already."""


class NewPackageError(PeftCoreError, ValueError):
    """A package for a new method can't be written: its name is illegal or taken."""


# ------------------------------------------------------------------------------------ configs and targets


class ConfigError(PeftCoreError, ValueError):
    """A config holds a value that its method can't work with."""


class TargetError(PeftCoreError, ValueError):
    """A config names modules, parameters or layers that the model does not have."""


class UnsupportedLayerError(TargetError):
    """A config names a layer of a kind that the method, or any installed plugin, can't adapt."""


# -------------------------------------------------------------------------------------- adapters in a model


class AdapterNameError(PeftCoreError, ValueError):
    """An adapter name is illegal, taken, or not known to the model."""


class NotMergeableError(PeftCoreError, ValueError):
    """An adapter depends on the input (or on the caller), so no weight can hold its effect."""


class MergeError(PeftCoreError, ValueError):
    """Merging was refused: the merged weight would not be finite, or the layer's storage can't hold it."""


class CompositionError(PeftCoreError, ValueError):
    """Adapters were activated together that exclude each other."""


class AdapterStoreError(PeftCoreError, RuntimeError):
    """An adapter store has no room for what a call needs, or an adapter that it was told to let go of is in use."""


class MixedBatchError(PeftCoreError, ValueError):
    """``adapter_names=`` does not fit the batch, the mode or the adapters of the model."""


class StepError(PeftCoreError, RuntimeError):
    """A training loop told a method of a step at a time when the method can't make use of it."""


class BaseModelError(PeftCoreError, ValueError):
    """A base model can't be made from what was named."""


class OutputError(PeftCoreError, ValueError):
    """What a command was to write can't be written: it is there already, or its folder is not."""


class TaskError(PeftCoreError, ValueError):
    """A model lacks what its task type needs."""


# ------------------------------------------------------------------------------------------------- files


class CheckpointError(PeftCoreError, ValueError):
    """An adapter's files are missing, damaged, foreign, or do not fit the model."""
