"""AdaptionPromptAdapter: tokens of its own for one attention."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter, Below
from peftcore.base_layers import BaseLayer
from peftcore.batches import first_tensor
from peftcore_adaption_prompt.config import AdaptionPromptConfig
from peftcore_adaption_prompt.projections import Projections


class AdaptionPromptAdapter(Adapter):
    """LLaMA-Adapter on one attention (arXiv 2303.16199): tokens that its queries attend to, in a softmax of their own.

    The output is increased by W_o · gate · softmax(q · K_pᵀ · scaling) · V_p, with keys and values that the frozen
    projections make of ``adaption_prompt`` ``[1, tokens, width]``. ``adaption_gate`` ``[1]`` starts with 0.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"module"})
    mergeable: ClassVar[bool] = False
    unmergeable_because: ClassVar[str] = "its effect depends on the input, which attends to the prompt"
    commutes: ClassVar[bool] = True
    keeps_inputs: ClassVar[bool] = True

    def __init__(self, base: BaseLayer, config: AdaptionPromptConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.projections = Projections(base.layer, config)
        self.adaption_prompt = nn.Parameter(torch.randn(1, config.adapter_len or 0, self.projections.width))
        self.adaption_gate = nn.Parameter(torch.zeros(1))

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run the attention, and add what its tokens find in the prompt."""
        output = below(*args, **kwargs)
        own = output if isinstance(output, Tensor) else output[0]
        own = own + self.change(first_tensor(args, kwargs), kwargs.get("position_embeddings")).to(own.dtype)
        return own if isinstance(output, Tensor) else (own, *output[1:])

    def change(self, x: Tensor, positions: Any) -> Tensor:
        """Return what is added to the attention's output.

        Args:
            x: What the attention is called with, ``[rows, length, width]``.
            positions: The cosines and sines by which its queries are rotated, or None.
        """
        query = self.projections.query(x, positions)
        key, value = self.projections.key_and_value(self.adaption_prompt.to(x.dtype))
        shares = (query @ key.transpose(-1, -2) * self.projections.scaling).float().softmax(-1)
        return self.projections.output((self.adaption_gate * shares).to(value.dtype) @ value)
