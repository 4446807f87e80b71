"""CPTEmbedding: a context whose embeddings stay near those of its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.exceptions import CheckpointError, TaskError
from peftcore.prompts import Batch, PromptEncoder, PromptSizes
from peftcore.prompts.layout import Layout
from peftcore.prompts.starts import embedded
from peftcore_cpt.config import CPTConfig
from peftcore_cpt.loss import TYPES, label_loss, types_behind

#: Width of the embeddings for which the config's radii are meant.
_WIDTH = 2048
#: How much farther than allowed an embedding may seem, by rounding, in units of its length.
_ROUNDING = 1e-3


class CPTEmbedding(PromptEncoder):
    """Embeddings E of a context's words, and what training adds, δ, each row of it kept in a ball (arXiv 2410.17222).

    The radius is that of the token's type; it is 0 for labels, which stay as they are. δ is brought back into the balls
    at the beginning of each call, so after each step of the optimizer. The file has ``prompt_embeddings``, E + δ, for
    use, and ``context_embeddings`` and ``delta_embeddings`` for going on, all ``[tokens, dim]``.

    Raises:
        TaskError: The model is no causal one.
        ConfigError: A token is not in its vocabulary.
    """

    call_arguments: ClassVar[frozenset[str]] = frozenset({"input_type_mask"})
    config: CPTConfig
    context_embeddings: Tensor
    radius: Tensor
    types: Tensor
    used: Tensor

    def __init__(self, config: CPTConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__(config, sizes, model)
        if sizes.is_encoder_decoder:
            raise TaskError("CPT puts examples in front of a text that goes on: the model must be a causal one.")
        context = embedded(model, torch.tensor(config.cpt_token_ids))
        self.register_buffer("context_embeddings", context)
        self.delta_embeddings = nn.Parameter(torch.zeros_like(context))
        form, given = config.opt_projection_format_epsilon, config.opt_projection_epsilon
        radii = torch.tensor([0.0, form, given, form])  # of a label, the format, the input, the format
        types = torch.tensor(config.cpt_tokens_type_mask)
        radius = radii[types % TYPES][:, None] * (sizes.token_dim / _WIDTH) ** 0.5
        used = torch.tensor([place for place, mask in enumerate(config.cpt_mask or ()) if mask])
        for name, tensor in (("radius", radius), ("types", types), ("used", used)):
            self.register_buffer(name, tensor, persistent=False)

    def embeddings(self, batch: Batch) -> Tensor:
        """Return the tokens of the context that are used, ``[tokens, dim]``."""
        delta = self._projected()
        if self.delta_embeddings.requires_grad:  # what is only used stays as it was loaded
            with torch.no_grad():
                delta = self.delta_embeddings.copy_(delta)
        return (self.context_embeddings + delta * (self.radius > 0)).index_select(0, self.used)

    @torch.no_grad()
    def _projected(self) -> Tensor:
        """Return δ with each row moved to the nearest place in its ball."""
        delta, number = self.delta_embeddings, torch.finfo(self.delta_embeddings.dtype)
        length = delta.norm(dim=1, keepdim=True).clamp(min=number.tiny)
        # What was projected before may seem outside by rounding; it stays, so that calls repeat exactly.
        outside = length > self.radius * (1 + 8 * number.eps)
        return torch.where(outside, delta * (self.radius / length), delta)

    def finish(self, output: Any, arguments: Mapping[str, Any], layout: Layout | None) -> Any:
        """Put CPT's loss into the output, if the call has labels; see :func:`peftcore_cpt.loss.label_loss`.

        Raises:
            TaskError: Another adapter's virtual tokens stand among those of the context.
        """
        labels = arguments.get("labels")
        if labels is None:
            return output
        targets, types = self._placed(labels, arguments.get("input_type_mask"), layout)
        decay = 1.0 if self.config.opt_weighted_loss_type == "none" else self.config.opt_loss_decay_factor
        loss = label_loss(output[1], targets, types, decay)
        if isinstance(output, tuple):
            return (loss, *output[1:])
        output.loss = loss
        return output

    def _placed(self, labels: Tensor, given: Tensor | None, layout: Layout | None) -> tuple[Tensor, Tensor]:
        """Return targets and types ``[rows, length]``, those of the context's tokens where these stand."""
        types = self.types[self.used]
        ids = torch.tensor(self.config.cpt_token_ids, device=types.device)[self.used]
        length = labels.shape[1] - (0 if layout is None else layout.slots)
        given = labels.new_full((len(labels), length), TYPES) if given is None else given.to(labels.device)
        if given.shape != (len(labels), length):
            raise TaskError(f"input_type_mask must be [{len(labels)}, {length}] as the input, got {list(given.shape)}.")
        behind = types_behind(self.types, given)
        if layout is None:  # the context is in the cache
            return labels, behind
        if layout.slots != len(ids):
            raise TaskError(
                "CPT's loss needs a context that no other adapter's virtual tokens stand in: deactivate them."
            )
        virtual, slot = layout.slot_of(length)
        return torch.where(virtual, ids[slot], labels), torch.where(virtual, types[slot], layout.fill(0, behind))

    # ----------------------------------------------------------------------------------------------- files

    @torch.no_grad()
    def derived_state(self) -> dict[str, Tensor]:
        """Return the embeddings that are used, all tokens' of the context."""
        return {"prompt_embeddings": self.context_embeddings + self._projected()}

    def settle_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Find E and δ in a file that has their sum alone, as HF PEFT writes it.

        For training, δ is what lies between the sum and the words of this model; for use, the sum is taken as it is.

        Raises:
            CheckpointError: The model's words are not those from which training began.
        """
        own, table = super().settle_state(state), state.get("prompt_embeddings")
        if table is None or "delta_embeddings" in state or table.shape != self.context_embeddings.shape:
            return own
        context = self.context_embeddings
        table = table.to(context)
        if self.config.inference_mode:
            return {**own, "context_embeddings": table, "delta_embeddings": torch.zeros_like(table)}
        delta = table - context
        allowed = self.radius + _ROUNDING * context.norm(dim=1, keepdim=True)
        if (delta.norm(dim=1, keepdim=True) > allowed).any():
            raise CheckpointError(
                "The file's embeddings are farther from this model's words than CPT lets them move: training began "
                "with another model, or with other words. Load it with is_trainable=False, to use it."
            )
        return {**own, "context_embeddings": context, "delta_embeddings": delta}
