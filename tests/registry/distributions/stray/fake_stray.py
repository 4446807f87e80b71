"""A plugin that registers a method which none of its entry points names."""

from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod


class AnnouncedConfig(LayerConfig, method="announced"):
    """The options of the method that the entry point names."""


class StrayConfig(LayerConfig, method="stray"):
    """The options of the method that no entry point names."""


class SomeAdapter(Adapter):
    """Does nothing."""


@hookimpl
def register_peft_method():
    return (
        PeftMethod(name="announced", config_cls=AnnouncedConfig, adapter_cls=SomeAdapter),
        PeftMethod(name="stray", config_cls=StrayConfig, adapter_cls=SomeAdapter),
    )
