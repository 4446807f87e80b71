"""GloraAdapter: five tensors that scale and shift a weight and a bias."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.starts import uniform, zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_glora.config import GloraConfig


class GloraAdapter(WeightDelta):
    """Generalized LoRA on one layer: Δ = W ∘ A + B, and of the bias b ∘ D + E + W · C (arXiv 2306.07967).

    W is the frozen weight seen as ``[out, in · kernel]``, b the frozen bias; layers without one have no C, D and E.
    Each tensor is ``glora_A.X``, or the product of ``glora_A.Xd`` and ``glora_A.Xu``, and so for all five:

    * A and B are ``[out, r]`` · ``[r, in · kernel]``, ``[out, 1]`` or ``[1]``; stacked experts have one each of the
      first two forms, ``[experts, …]``;
    * C is ``[in · kernel, r]`` · ``[r, 1]`` or ``[in · kernel, 1]``;
    * D and E are ``[out]`` or ``[1]``.

    Raises:
        ConfigError: The rank is above both sizes of the weight; or C, D or E is asked for on an attention with biases,
            which does more with them than to add them to its output.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS
    depends_on_weight = True
    changes_bias: bool = False  # known beforehand, and so not computed when it is asked

    def __init__(self, base: BaseLayer, config: GloraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        if config.config_A_B == "lora":
            check_rank(base, config, "r")
        on_bias = (config.config_C, config.config_D_E, config.config_D_E) if base.bias is not None else ("none",) * 3
        if base.kind == "attention" and set(on_bias) != {"none"}:
            problem = "C, D and E need a layer that only adds its bias to its output"
            config.refuse("config_C", f"{problem}: set it and config_D_E to 'none', or exclude the {base}")
        forms = (config.config_A_B, config.config_A_B, *on_bias)
        for (name, shape), form in zip(self._shapes().items(), forms, strict=True):
            self.add_module(f"glora_{name}", nn.ParameterDict(_start(form, shape, config)))
        self.changes_bias = any(form != "none" for form in on_bias)

    def absent(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what is left out, for which HF PEFT's files hold zeros, by the names there."""
        if type(self.base.layer) is not nn.Linear:
            return {}  # HF PEFT has the method for that alone
        return {f"glora_{name}.zeros": shape for name, shape in self._shapes().items() if not self._parts(name)}

    def delta_weight(self) -> Tensor:
        """Return W ∘ A + B."""
        a, b = self._tensor("A"), self._tensor("B")
        if a is None or b is None:
            return torch.zeros(self.base.weight_shape, dtype=self.dtype, device=self.base.device)
        return torch.addcmul(b, self._weight(a), a)

    def delta_bias(self) -> Tensor | None:
        """Return b ∘ D + E + W · C, ``[out]``, or None if there is none of them."""
        c, d, e, frozen = self._tensor("C"), self._tensor("D"), self._tensor("E"), self.base.bias
        terms = [] if c is None else [(self._weight(c) @ c).squeeze(-1)]
        if d is not None and e is not None and frozen is not None:
            terms.append(frozen.to(d) * d + e)
        return sum(terms[1:], terms[0]) if terms else None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        out, into = self.base.matrix_shape
        matrix = (*self.base.stack_shape, out, into)
        return {"A": matrix, "B": matrix, "C": (into, 1), "D": (out,), "E": (out,)}

    def _parts(self, name: str) -> dict[str, Tensor]:
        return self._modules[f"glora_{name}"]._parameters  # type: ignore[union-attr, return-value]

    def _tensor(self, name: str) -> Tensor | None:
        parts = self._parts(name)
        return parts["Xd"] @ parts["Xu"] if "Xd" in parts else parts.get("X")

    def _weight(self, like: Tensor) -> Tensor:
        return self.base.weight().to(like).reshape(*self.base.stack_shape, *self.base.matrix_shape)


def _start(form: str, shape: tuple[int, ...], config: GloraConfig) -> dict[str, Tensor]:
    """Return a tensor's parts as they start: their product is zero, or for tests not."""
    if form == "none":
        return {}
    if form == "constant":
        return {"X": torch.zeros(1) if config.init_weights else torch.empty(1).normal_(std=0.02)}
    *rows, into = shape
    first = (*rows, config.r) if form == "lora" else (*rows, 1) if rows else shape
    start = zeros_or_uniform(*first, zeros=config.init_weights, fan_in=first[-1])
    if form == "vector":
        return {"X": start}
    return {"Xd": start, "Xu": uniform(*rows[:-1], config.r, into, fan_in=into)}
