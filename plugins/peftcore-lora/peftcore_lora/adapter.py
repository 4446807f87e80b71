"""LoraAdapter: two small factors whose product is added to a frozen weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, ThinFactors, WeightDelta
from peftcore.adapters.low_rank import TakesFactors
from peftcore.adapters.taking import take
from peftcore.base_layers import BaseLayer
from peftcore.modules import LeanModule
from peftcore_lora import inits
from peftcore_lora.config import LoraConfig
from peftcore_lora.forms import ACROSS, AcrossGroups, Channels, Form, Groups, form_for

#: Kinds whose bias, if they have one, is not just added to the output.
_WITHOUT_BIAS = {"attention", "embedding", "parameter"}


class Factor(LeanModule):
    """Holds a factor under the names that files have: ``lora_A.weight``, ``lora_B.bias``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # Not by attribute: this runs twice for every layer that is adapted, and nn.Module's attributes are slow to set.
        self._parameters.update(weight=nn.Parameter(weight), bias=None if bias is None else nn.Parameter(bias))


def _weight(factor: nn.Module | None) -> Tensor:
    held: Any = factor
    found = held._parameters.get("weight")
    return held.weight if found is None else found  # a parametrization may have taken it


class LoraAdapter(WeightDelta, TakesFactors):
    """Low-rank adaptation of one layer: Δ = s · B · A (arXiv 2106.09685).

    Its parameters are ``lora_A.weight`` and ``lora_B.weight``, in the shapes of :mod:`peftcore_lora.forms`, and
    ``lora_B.bias`` ``[out]`` with ``lora_bias``; on an embedding, ``lora_embedding_A`` ``[r, vocabulary]`` and
    ``lora_embedding_B`` ``[dim, r]``.
    Dropout acts on the layer's input, and so not on an embedding, whose input are token ids.

    Attributes:
        r: The rank.
        lora_alpha: Numerator of the scaling.
        scaling: s; may be set.

    Raises:
        ConfigError: The config does not go with the layer's kind, or the rank is no multiple of its groups.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS
    unmergeable_because = f"it {ACROSS}"

    r: int
    lora_alpha: float
    scaling: float
    form: Form
    lora_bias: bool
    lora_A: Factor | None
    lora_B: Factor
    lora_embedding_A: nn.Parameter | None
    lora_embedding_B: nn.Parameter

    def __init__(self, base: BaseLayer, config: LoraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        _check_kind(base, config)
        scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        self.__dict__.update(r=config.r, lora_alpha=config.lora_alpha, scaling=scaling, form=form_for(base, config))
        self.__dict__["lora_bias"] = config.lora_bias
        self._make_factors(config)

    def _make_factors(self, config: LoraConfig) -> None:
        init, shapes = config.init_lora_weights, self.form.shapes(self.base, self.r)
        if self.base.kind == "embedding":
            a, b = inits.embedding_factors(init, *shapes)
        else:
            a, b = inits.factors(init, *shapes, self.r)
        bias = inits.last(init, b.shape[:1], fan_in=b[0].numel()) if config.lora_bias else None
        _store(self, self.base.kind, a, b, bias)

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """Whether a weight can hold Δ; not for a grouped convolution's Δ that joins groups."""
        return not isinstance(self.form, AcrossGroups)

    def saved_module(self) -> nn.Module:
        """Return this module; of a grouped convolution, one that holds A as files do."""
        if not isinstance(self.form, Groups):
            return self
        a, b = self.factors()
        assert a is not None, "a form of groups has two factors"
        saved = nn.Module()
        _store(saved, self.base.kind, self.form.spread(self.base, a.detach()), b.detach(), self.lora_B.bias)
        return saved

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take the factors of a grouped convolution in the form that they have: HF PEFT trains A across the groups."""
        if not isinstance(self.form, (Groups, AcrossGroups)) or not {"lora_A.weight", "lora_B.weight"} <= state.keys():
            return
        whole = state["lora_A.weight"]
        own = Groups.gather(self.base, whole)
        self.form = Groups() if torch.equal(Groups.spread(self.base, own), whole) else AcrossGroups()
        self._take(own if isinstance(self.form, Groups) else whole, state["lora_B.weight"])
        if "lora_B.bias" in state:
            take(self.lora_B, "bias", state["lora_B.bias"])

    @classmethod
    def config_of_rank(cls, rank: int, **fields: Any) -> LoraConfig:
        """Return the config of a rank, with a scaling of 1."""
        return LoraConfig(r=rank, lora_alpha=rank, **fields)

    @torch.no_grad()
    def take_factors(self, a: Tensor, b: Tensor) -> None:
        """Let Δ be ``b @ a``; see :meth:`peftcore.adapters.low_rank.TakesFactors.take_factors`."""
        shapes, (a, b) = self.form.shapes(self.base, self.r), self.form.arranged(a, b)
        assert shapes[0] is not None, "config_of_rank asks for no full matrix"
        self._take(a.reshape(shapes[0]), b.reshape(shapes[1]) / self.scaling)

    def _take(self, a: Tensor, b: Tensor) -> None:
        if self.base.kind == "embedding":
            take(self, "lora_embedding_A", a)
            take(self, "lora_embedding_B", b)
        else:
            assert self.lora_A is not None, "who takes a factor A has one"
            take(self.lora_A, "weight", a)
            take(self.lora_B, "weight", b)

    def factors(self) -> tuple[Tensor | None, Tensor]:
        """Return A and B; A is None where B is the full matrix."""
        if self.base.kind == "embedding":
            return self.lora_embedding_A, self.lora_embedding_B
        # Not by nn.Module's slow attributes: this runs in every call of an adapted layer.
        a, b = self._modules["lora_A"], self._modules["lora_B"]
        return None if a is None else _weight(a), _weight(b)

    def delta_weight(self) -> Tensor:
        """Return s · B · A."""
        a, b = self.factors()
        return self.form.product(self.base, a, b * self.scaling)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return s · B · A · dropout(x), and the bias's share."""
        output = self.form.act(self.base, *self.factors(), self.entering(x), self.scaling)
        bias = self.delta_bias()
        return output if bias is None else self.base.add_bias(output, bias)

    def thin_factors(self) -> ThinFactors | None:
        """Return A, B and s on a linear layer, unless there is a bias or one full matrix."""
        if self.base.kind != "linear" or type(self.form) is not Channels or self.lora_bias:
            return None
        a, b = self.factors()
        return None if a is None else ThinFactors(a, b, self.scaling)

    def thin_places(self) -> Sequence[tuple[Mapping[str, Any], str]]:
        """Return where A, B, s and what decides on them are kept; nothing where they are another adapter's."""
        a, b = self._modules["lora_A"], self._modules["lora_B"]
        if type(self) is not LoraAdapter or a is None or b is None:
            return ()
        own = [(self.__dict__, name) for name in ("scaling", "form", "lora_bias")]
        factors = [(self._modules, "lora_A"), (self._modules, "lora_B")]
        return [*own, *factors, (a._parameters, "weight"), (b._parameters, "weight")]

    def delta_bias(self) -> Tensor | None:
        """Return s times the bias of B, ``[out]``, or None."""
        bias = self.lora_B.bias if self.lora_bias else None
        return None if bias is None else bias * self.scaling

    def tied(self, base: BaseLayer, config: LoraConfig) -> TiedLoraAdapter:
        """Return this adapter as it acts on another layer that stores the same weight.

        Args:
            base: The other layer, of this one's kind, or linear if this one is an embedding (a language model's head).
            config: The config as it holds for the other layer; rank and scaling stay this adapter's.
        """
        return TiedLoraAdapter(base, config, self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={type(self.form).__name__.lower()}"


class TiedLoraAdapter(LoraAdapter):
    """An adapter that acts a second time, on a layer that stores the same weight (transposed: an embedding and a head).

    It holds nothing of its own, so one change trains both layers; files hold the factors under both layers' keys.
    """

    repeats_another = True

    source: LoraAdapter

    def __init__(self, base: BaseLayer, config: LoraConfig, source: LoraAdapter) -> None:
        # Kept out of the module tree: the source stands there already.
        self.__dict__["source"] = source
        super().__init__(base, config)

    def _make_factors(self, config: LoraConfig) -> None:
        source = self.source
        self.r, self.lora_alpha, self.scaling, self.form = source.r, source.lora_alpha, source.scaling, source.form

    def factors(self) -> tuple[Tensor | None, Tensor]:
        """Return the source's factors, as this layer has to see them."""
        a, b = self.source.factors()
        if self.base.kind == self.source.base.kind:
            return a, b
        return (None, b.t()) if a is None else (b.t(), a.t())

    def delta_bias(self) -> None:
        """Return None: a bias belongs to one layer."""

    @property
    def dtype(self) -> torch.dtype:
        """The source's dtype."""
        return self.source.dtype

    def saved_module(self) -> nn.Module:
        """Return a module that holds the factors in the file's names, as views: loading into it reaches the source."""
        a, b = self.factors()
        views = nn.Module()
        _store(views, self.base.kind, None if a is None else a.detach(), b.detach())
        return views


def _store(module: Any, kind: str, a: Tensor | None, b: Tensor, bias: Tensor | None = None) -> None:
    """Give a module the factors, under the names that files have for a kind of layer."""
    if kind == "embedding":
        module.lora_embedding_A = None if a is None else nn.Parameter(a)
        module.lora_embedding_B = nn.Parameter(b)
    else:
        module._modules.update(lora_A=None if a is None else Factor(a), lora_B=Factor(b, bias))


def _check_kind(base: BaseLayer, config: LoraConfig) -> None:
    if config.lora_bias and base.kind in _WITHOUT_BIAS:
        problem = "needs a layer that only adds its bias to its output"
        config.refuse("lora_bias", f"{problem}: leave it out, or exclude the {base}")
    if config.init_lora_weights == "orthogonal" and len(base.weight_shape) > 2:
        config.refuse("init_lora_weights", f"'orthogonal' is defined for matrices only, and not for a {base}")
