"""A plugin that returns something that is no method."""

from peftcore.hookspecs import hookimpl


@hookimpl
def register_peft_method():
    return {"name": "wrong_type"}
