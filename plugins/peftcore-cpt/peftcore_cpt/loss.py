"""CPT's loss: on the labels of the context's examples and of the input, the last ones weighing most."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: What a type says repeats with each example; the last one is the label.
TYPES = 4
#: What is left out of a loss.
IGNORED = -100


def label_loss(logits: Tensor, targets: Tensor, types: Tensor, decay: float) -> Tensor:
    """Return the mean cross-entropy of the label tokens, each weighed by decay to the number of labels behind its own.

    Args:
        logits: ``[rows, length, vocabulary]``.
        targets: The tokens, ``[rows, length]``; those that are -100 are left out.
        types: Their types, ``[rows, length]``.
        decay: Weight of a label relative to the next one in its row.
    """
    targets, types = targets.to(logits.device), types.to(logits.device)
    example = torch.where(types % TYPES == 0, types // TYPES, 0)
    weights = decay ** _examples_behind(example)
    scored = ((example > 0) & (targets != IGNORED))[:, 1:]
    losses = nn.functional.cross_entropy(logits[:, :-1][scored].float(), targets[:, 1:][scored], reduction="none")
    return (losses * weights[:, 1:][scored]).sum() / scored.sum().clamp(min=1)


def types_behind(context: Tensor, given: Tensor) -> Tensor:
    """Return the types of tokens behind a context, whose example is a new one, from those that they have alone."""
    examples = int(context.max()) // TYPES  # one without a label takes no number from those behind
    return torch.where(given > 0, given + TYPES * examples, 0)


def _examples_behind(example: Tensor) -> Tensor:
    """Return, for numbers of examples ``[rows, length]``, how many with a higher number the row has, in float."""
    present = example.new_zeros(len(example), int(example.max()) + 1).scatter(1, example, 1)
    behind = present.flip(1).cumsum(1).flip(1) - present
    return behind.gather(1, example).float()
