"""An extension whose hook takes an argument that the hook does not have."""

from peftcore.hookspecs import hookimpl


@hookimpl
def adapt_base_layer(layer, colour):
    return None
