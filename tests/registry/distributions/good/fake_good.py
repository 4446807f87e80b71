"""A plugin as it should be."""

from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod

__all__ = ["GoodConfig", "Unrelated"]


TABLE = {"known_to_its_table": ["from_the_table"], "known_to_the_extension": ["never_asked"]}


class GoodConfig(LayerConfig, method="good"):
    """The options of the method."""


class GoodAdapter(Adapter):
    """Does nothing."""


class Unrelated:
    """An export whose name does not tell the method."""


@hookimpl
def register_peft_method():
    return PeftMethod(name="good", config_cls=GoodConfig, adapter_cls=GoodAdapter, default_targets=TABLE)


@hookimpl
def default_target_modules(method, model_type):
    return ["from_the_method"] if (method, model_type) == ("good", "known_to_the_method") else None
