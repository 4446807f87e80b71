"""A plugin with two methods, which share a prefix."""

from peftcore.adapters.base import Adapter
from peftcore.config import LayerConfig
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod

__all__ = ["FirstConfig", "SecondConfig"]

calls = []


class FirstConfig(LayerConfig, method="first"):
    """The options of the first method."""


class SecondConfig(LayerConfig, method="second"):
    """The options of the second method."""


class CommonAdapter(Adapter):
    """Does nothing, for both."""

    prefix = "common_"


@hookimpl
def register_peft_method():
    calls.append("register_peft_method")
    return [
        PeftMethod(name="first", config_cls=FirstConfig, adapter_cls=CommonAdapter, shares_prefix=True),
        PeftMethod(
            name="second",
            config_cls=SecondConfig,
            adapter_cls=CommonAdapter,
            shares_prefix=True,
            is_mixed_compatible=False,
        ),
    ]
