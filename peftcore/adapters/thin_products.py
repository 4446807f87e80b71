"""y = x·Wᵀ + b + s·x·Aᵀ·Bᵀ in the fewest steps: a frozen linear layer together with a Δ of two thin factors.

Step by step, autograd would make three tensors of the output's size and two of the input's for each such layer; to
allocate and to pass over them takes longer than the thin products do.
Here the frozen product is made once and Δ's share is added to it in place, forward as backward, and only the input and
the r features ``x·Aᵀ`` are kept.

Which order of multiplications is the cheapest depends on the shapes (RunLoRA, arXiv 2312.03415).
While gradients are needed, r features are the way in and out: B's gradient needs them anyway.
Without gradients, more tokens than the weight has rows and columns are multiplied by W + s·B·A: the cost of that sum
does not grow with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _is_any_autocast_enabled
from torch._C._functorch import unwrap_if_dead
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling
from torch.nn.functional import linear

from peftcore.adapters.delta import WeightDelta
from peftcore.base_layers.base import BaseLayer

# This runs in every call of every adapted layer, and calls and reads as little as it can: the weights of the layers
# between two such calls drive what Python needs out of the processor's cache, so that each step costs several times
# what it does in a loop of its own.


def run_with_thin_delta(base: BaseLayer, delta: WeightDelta, x: Any) -> Tensor | None:
    """Run a frozen linear layer together with a delta on it; None if that has to be done step by step.

    Args:
        base: The layer's view.
        delta: What acts on it.
        x: The layer's input, ``[..., in]``.
    """
    if is_watched() or not isinstance(x, Tensor):
        return None
    matrix = base.plain_matrix()
    factors = None if matrix is None else delta.thin_factors()
    if matrix is None or factors is None:
        return None
    (weight, bias), (a, b, scaling) = matrix, factors
    dtype = autocast_dtype(x.device) if _is_any_autocast_enabled() else None
    if dtype is not None:
        x, weight, a, b = x.to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    fine = a.dtype
    if x.dim() < 2 or x.dtype != weight.dtype or fine != b.dtype:
        return None
    whole = x if x.dtype == fine else x.to(fine)
    seen = delta.entering(whole)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or x.requires_grad):
        drops = seen is not whole
        # A mere cast has no gradient of its own.
        other = seen if drops else None if seen is x else seen.detach()
        result: Tensor = _apply(unwrap_if_dead(x), other, drops, weight, bias, a, b, scaling)
        return result
    if seen is x and fine is torch.float32 and _are_many(x, weight):
        # A coarser weight would lose what Δ adds in its last places.
        return linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)
    return _output_and_features(x, seen, weight, bias, a, b, scaling)[0]


def _are_many(x: Tensor, weight: Tensor) -> bool:
    """Whether there are more rows than the weight has rows or columns."""
    return x.numel() > max(weight.shape) * x.shape[-1]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype in which autocast has products computed on a device; None if it does not."""
    kind = device.type
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if active else None


def is_watched() -> bool:
    """Whether something looks at each step, or changes what it means: a compiler, a tracer, a transform, dual numbers.

    They do better with the steps that they know; a compiler fuses them itself.
    """
    return (
        is_compiling()
        or _are_functorch_transforms_active()
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _output_and_features(
    x: Tensor, seen: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Return the output ``[..., out]``, and the features ``[rows, r]`` from which Δ's share of it was made.

    Args:
        x: The input.
        seen: What A acts on: the input, a cast of it, or what dropout has left.
        weight, bias: Of the frozen layer.
        a, b, scaling: Of the delta.
    """
    flat = x.dim() == 2
    rows = x if flat else x.flatten(0, -2)
    entering = rows if seen is x else seen if flat else seen.flatten(0, -2)
    features = linear(entering, a)
    output = _plus(linear(rows, weight, bias), features, b.t(), scaling)
    return output if flat else _shaped(output, [*x.shape[:-1], output.shape[1]]), features


#: Another shape of a tensor that nobody else has; for autograd it is no view, so that what follows may write to it.
_shaped: Any = torch.ops.aten._unsafe_view.default


def _plus(rows: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> Tensor:
    """Return rows + scaling · left · right; the rows may be written to."""
    if rows.dtype == left.dtype:
        return rows.addmm_(left, right, alpha=scaling)
    if rows.dtype.itemsize < left.dtype.itemsize:
        # Summed in the finer dtype. Whole passes take a third of the time of one sum of two dtypes.
        return rows.to(left.dtype).addmm_(left, right, alpha=scaling).to(rows.dtype)
    return rows.add_(left.mm(right), alpha=scaling)


def _outer(like: Tensor, out: Tensor, features: Tensor, scaling: float) -> Tensor:
    """Return scaling · outᵀ · features, shaped as ``like``.

    A wide result is made sooner than a narrow one; for a few rows, the copy that puts its entries in order costs more.
    """
    if out.shape[0] > 64:
        return torch.addmm(like.t(), features.t(), out, beta=0, alpha=scaling).t()
    return torch.addmm(like, out.t(), features, beta=0, alpha=scaling)


class _LinearWithThinDelta(Function):
    """The gradients are those of the input, of what dropout has left of it, and of both factors.

    Everything is computed by differentiable steps, so gradients can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seen: Tensor | None,
        drops: bool,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        """Return the output.

        Args:
            ctx: What backward gets.
            x: The input.
            seen: What A acts on, where that is another tensor: a cast, or what dropout has left.
            drops: Whether dropout has made it.
            weight, bias: Of the frozen layer.
            a, b, scaling: Of the delta.
        """
        output, features = _output_and_features(x, x if seen is None else seen, weight, bias, a, b, scaling)
        # A's gradient takes the input, or what dropout has left of it; B's, the features. A cast is made again.
        _, _, _, _, _, of_a, of_b, _ = ctx.needs_input_grad
        kept = (seen if drops else x) if of_a or of_b else None
        ctx.save_for_backward(kept, features if of_b else None, weight, a, b)
        ctx.known = scaling, drops, seen is not None and x.dtype != seen.dtype
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, features, weight, a, b = ctx.saved_tensors
        of_x, of_seen, _, _, _, of_a, of_b, _ = ctx.needs_input_grad
        scaling, drops, is_cast = ctx.known
        shape = None if gradient.dim() == 2 else gradient.shape[:-1]
        if shape is not None:
            gradient = gradient.flatten(0, -2)
            kept = None if kept is None else kept.flatten(0, -2)
        fine = gradient
        if is_cast:
            fine, kept = gradient.to(b.dtype), None if kept is None else kept.to(a.dtype)
        # With beta = 0 the first argument only lends its shape, and alpha scales without another pass.
        like = fine.new_empty(1, b.shape[1]) if features is None else features
        of_features = torch.addmm(like, fine, b, beta=0, alpha=scaling)
        gradient_a = gradient_b = gradient_x = gradient_seen = None
        if of_a:
            gradient_a = of_features.t().mm(kept)
        if of_b:
            if torch.is_grad_enabled():  # kept features know nothing of A, whose gradient is to be differentiated
                features = linear(kept, a)
            gradient_b = _outer(b, fine, features, scaling)
        if of_x:
            gradient_x = gradient.mm(weight)
            if not drops:
                gradient_x = _plus(gradient_x, of_features, a)
        if of_seen:
            gradient_seen = of_features.mm(a)
        if shape is not None:
            gradient_x = None if gradient_x is None else gradient_x.view(*shape, a.shape[1])
            gradient_seen = None if gradient_seen is None else gradient_seen.view(*shape, a.shape[1])
        return gradient_x, gradient_seen, None, None, None, gradient_a, gradient_b, None


#: What ``Function.apply`` calls where no transform is active, which is known here; asking for that takes it longer than
#: a product of thin factors.
_apply: Any = super(Function, _LinearWithThinDelta).apply
