"""A plugin as it should be."""

from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod

__all__ = ["GoodConfig", "Unrelated"]


class GoodConfig(LayerConfig, method="good"):
    """The options of the method."""


class GoodAdapter(Adapter):
    """Does nothing."""


class Unrelated:
    """An export whose name does not tell the method."""


@hookimpl
def register_peft_method():
    return PeftMethod(name="good", config_cls=GoodConfig, adapter_cls=GoodAdapter)


@hookimpl
def default_target_modules(method, model_type):
    return ["from_the_method"] if (method, model_type) == ("good", "known_to_the_method") else None
