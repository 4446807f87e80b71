"""An extension that implements every hook that an extension can."""

from peftcore.exceptions import CheckpointError
from peftcore.hookspecs import hookimpl

view = object()


@hookimpl
def adapt_base_layer(layer):
    if layer == "a layer that makes it fail":
        raise ZeroDivisionError("on purpose")
    return view if layer == "a packed layer" else None


@hookimpl
def default_target_modules(method, model_type):
    return {"known_to_the_extension": ["from_the_extension"]}.get(model_type)


@hookimpl
def convert_checkpoint(state, source):
    if source == "unreadable":
        raise CheckpointError("the file is of a format that ended long ago")
    return {key.removeprefix("old."): value for key, value in state.items()} if "old.a" in state else None


@hookimpl
def register_commands(cli):
    cli.append("a subcommand")
