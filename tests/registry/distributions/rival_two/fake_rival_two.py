"""One of two plugins that claim the same name."""

from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod

__all__ = ["ContestedConfig"]


class ContestedConfig(LayerConfig, method="contested"):
    """The options of the method, as number two has it."""


class ContestedAdapter(Adapter):
    """Does nothing."""


@hookimpl
def register_peft_method():
    return PeftMethod(name="contested", config_cls=ContestedConfig, adapter_cls=ContestedAdapter)
