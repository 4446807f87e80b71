"""torch's own attention, which reads the weights of its parts and never calls them."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from peftcore.base_layers.base import BaseLayer, DenseLayer, innermost
from peftcore.base_layers.linear import LinearLayer


def reads_weights(parent: nn.Module) -> bool:
    """Whether a module is known to read its children's ``weight`` and ``bias`` instead of calling the children.

    ``nn.MultiheadAttention`` reads ``out_proj`` always. ``nn.TransformerEncoderLayer`` reads ``self_attn`` (and its
    ``out_proj``), ``linear1``, ``linear2``, ``norm1`` and ``norm2`` on its fast path: in eval mode, where gradients
    are off or neither the input nor any of these weights needs one.
    Whoever puts something in such a child's place must answer for its effective weight and bias.
    """
    return isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer))


class AttentionLayer(DenseLayer):
    """The stacked input projection of ``nn.MultiheadAttention``, ``[3 · dim, dim]``: query, key, value.

    Layers whose keys or values have another size than the queries hold three separate weights and are not supported.
    The output projection is a layer of its own, see :meth:`inner_layers`.
    """

    kind: ClassVar[str] = "attention"
    weight_name: str = "in_proj_weight"
    bias_name: ClassVar[str] = "in_proj_bias"
    additive: bool = False
    read_by_owner: bool = True
    takes_one_input: ClassVar[bool] = False

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.batch_dim = 0 if layer.batch_first else 1

    def inner_layers(self) -> tuple[tuple[str, BaseLayer], ...]:
        """Return the output projection, if its weight is dense; the frozen one, if adapters stand around it already."""
        projection = LinearLayer.of(innermost(self.layer.get_submodule("out_proj"), "weight")[0])
        if projection is None:
            return ()
        projection.read_by_owner = True
        return (("out_proj", projection),)

    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Run the whole attention, biases included, with another input projection; the output is the layer's.

        Args:
            weight: ``[3 · dim, dim]``, cast to the layer's dtype.
            *args: Query, key, value, as ``nn.MultiheadAttention`` takes them.
            **kwargs: Masks and flags.
        """
        replaced = {self.weight_name: weight.to(self.dtype)}
        output: tuple[Tensor, Tensor | None] = functional_call(self.layer, replaced, args, kwargs)
        return output
