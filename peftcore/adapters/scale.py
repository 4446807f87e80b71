"""OutputScale: y' = M y + b, the family of methods that change what a layer puts out, or what goes into it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from peftcore.adapters.base import Adapter, Below


class OutputScale(Adapter):
    """A linear change of a layer's output, bias included, and a shift of it; or a scaling of the layer's input.

    The author writes whatever the method has: :meth:`output_factors`, or :meth:`change_output` for a map that is no
    product with factors, :meth:`shift` and :meth:`input_factors`.
    A method on embeddings adds that kind to :attr:`kinds`; the token ids that go into one can't be scaled, and an
    embedding can't hold a shift.
    """

    #: Kinds whose output goes through the adapter as it leaves the layer, and that can hold a bias.
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d", "conv2d", "conv3d"})

    def output_factors(self) -> Tensor | None:
        """Return what the output is multiplied by, ``[out]``, or None if the output stays as it is."""
        return None

    def change_output(self, features: Tensor) -> Tensor:
        """Return the changed features, a linear map over the last dimension; it also acts on the bias.

        On a grouped convolution it must not mix outputs of different groups: these see different inputs, so no weight
        of the layer could hold that.

        Args:
            features: ``[..., out]``, in the adapter's dtype or a wider one. A convolution's channels are brought there
                and back without a copy, so a map made of products and sums keeps the output's layout in memory.
        """
        factors = self.output_factors()
        return features if factors is None else features * factors

    def shift(self) -> Tensor | None:
        """Return what is added to the output, ``[out]``, or None."""
        return None

    def input_factors(self) -> Tensor | None:
        """Return what the input is multiplied by, ``[in]``, or None if the input stays as it is."""
        return None

    @classmethod
    def is_by_vectors(cls) -> bool:
        """Whether :meth:`output_factors`, :meth:`input_factors` and :meth:`shift` say all that it does."""
        return cls.change_output is OutputScale.change_output and cls.forward is OutputScale.forward

    @property
    def changes_output(self) -> bool:
        """Whether the output is mapped, beside being shifted."""
        return type(self).change_output is not OutputScale.change_output or self.output_factors() is not None

    @property
    def changes_weight(self) -> bool:  # type: ignore[override]
        """Whether the weight becomes another one; not if the output is shifted alone."""
        return self.changes_output or self.input_factors() is not None

    @property
    def changes_bias(self) -> bool:  # type: ignore[override]
        """Whether the layer's bias becomes another one; not if the input alone is scaled."""
        return self.changes_output or self.shift() is not None

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run what stands below on the scaled input, and change its output."""
        factors = self.input_factors()
        if factors is not None:
            x = self.base.with_features_last(lambda features: features * factors, self.cast(x))
        output = below(x, *args, **kwargs)
        if self.changes_output:
            output = self.base.with_features_last(self.change_output, self.cast(output))
        shift = self.shift()
        return output if shift is None else self.base.add_bias(output, shift)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight with its inputs and outputs changed, and the bias changed and shifted."""
        factors = self.input_factors()
        if factors is not None:
            weight = self.base.scale_weight_inputs(weight, factors)
        if self.changes_output:
            weight = self.change_output(weight.movedim(0, -1)).movedim(-1, 0)
            bias = None if bias is None else self.change_output(bias.to(weight.dtype))
        shift = self.shift()
        if shift is None:
            return weight, bias
        return weight, shift if bias is None else bias + shift
