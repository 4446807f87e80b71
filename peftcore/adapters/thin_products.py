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
from torch.autograd import forward_ad
from torch.nn.functional import linear

from peftcore.adapters.delta import WeightDelta
from peftcore.base_layers.base import BaseLayer


def run_with_thin_delta(base: BaseLayer, delta: WeightDelta, x: Any) -> Tensor | None:
    """Run a frozen linear layer together with a delta on it; None if that has to be done step by step.

    Args:
        base: The layer's view.
        delta: What acts on it.
        x: The layer's input, ``[..., in]``.
    """
    if is_watched() or not isinstance(x, Tensor) or x.dim() < 2:
        return None
    matrix = base.plain_matrix()
    factors = None if matrix is None else delta.thin_factors()
    if matrix is None or factors is None:
        return None
    (weight, bias), (a, b, scaling) = matrix, factors
    dtype = autocast_dtype(x.device)
    if dtype is not None:
        x, weight, a, b = x.to(dtype), weight.to(dtype), a.to(dtype), b.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if x.dtype != weight.dtype or a.dtype != b.dtype:
        return None
    whole = _cast(x, a.dtype)
    seen = delta.entering(whole)
    drops = seen is not whole
    tokens = x.numel() // max(x.shape[-1], 1)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or x.requires_grad):
        if tokens > _FEW:
            # A mere cast has no gradient of its own.
            other = seen if drops else None if seen is x else seen.detach()
            result: Tensor = _LinearWithThinDelta.apply(x, other, drops, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
            return result
    elif not drops and tokens > max(weight.shape) and weight.dtype == a.dtype == torch.float32:
        # A coarser weight would lose what Δ adds in its last places.
        return linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)
    output = linear(_rows(x), weight, bias)
    _add_thin_(output, linear(_rows(seen), a), b, scaling)
    return output.view(*x.shape[:-1], len(weight))


#: Up to so many tokens, autograd's own steps take less time than a function in Python: what they make is small.
_FEW = 16


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
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _add_thin_(output: Tensor, features: Tensor, b: Tensor, scaling: float) -> None:
    """Add scaling · features · Bᵀ to an output of as many rows, in place."""
    if output.dtype == b.dtype:
        output.addmm_(features, b.t(), alpha=scaling)
    else:
        output.add_(features.mm(b.t()), alpha=scaling)  # summed in the finer dtype


# Both would return the same tensor where there is nothing to do, but take longer to see that.
def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(0, -2)


def _outer(like: Tensor, out: Tensor, features: Tensor, scaling: float) -> Tensor:
    """Return scaling · outᵀ · features, shaped as ``like``.

    A wide result is made sooner than a narrow one; for a few rows, the copy that puts its entries in order costs more.
    """
    if len(out) > 64:
        return torch.addmm(like.t(), features.t(), out, beta=0, alpha=scaling).t()
    return torch.addmm(like, out.t(), features, beta=0, alpha=scaling)


class _LinearWithThinDelta(torch.autograd.Function):
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
        features = _rows(linear(x if seen is None else seen, a))
        output = linear(x, weight, bias)
        _add_thin_(_rows(output), features, b, scaling)
        # A's gradient takes the input, or what dropout has left of it; B's, the features. A cast is made again.
        _, _, _, _, _, of_a, of_b, _ = ctx.needs_input_grad
        kept = (seen if drops else x) if of_a or of_b else None
        ctx.save_for_backward(kept, features if of_b else None, weight, a, b)
        ctx.scaling, ctx.drops = scaling, drops
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, features, weight, a, b = ctx.saved_tensors
        of_x, of_seen, _, _, _, of_a, of_b, _ = ctx.needs_input_grad
        outer = _rows(gradient)
        fine = _cast(outer, b.dtype)
        # With beta = 0 the first argument only lends its shape, and alpha scales without another pass.
        shape = fine.new_empty(1, len(a)) if features is None else features
        of_features = torch.addmm(shape, fine, b, beta=0, alpha=ctx.scaling)
        gradient_a = gradient_b = gradient_x = gradient_seen = None
        if of_a:
            gradient_a = of_features.t().mm(_rows(_cast(kept, a.dtype)))
        if of_b:
            if torch.is_grad_enabled():  # kept features know nothing of A, whose gradient is to be differentiated
                features = _rows(linear(_cast(kept, a.dtype), a))
            gradient_b = _outer(b, fine, features, ctx.scaling)
        if of_x:
            gradient_x = outer.mm(weight)
            if not ctx.drops and a.dtype == weight.dtype:
                gradient_x.addmm_(of_features, a)
            elif not ctx.drops:
                gradient_x.add_(of_features.mm(a))
            gradient_x = gradient_x.view(*gradient.shape[:-1], a.shape[1])
        if of_seen:
            gradient_seen = of_features.mm(a).view(*gradient.shape[:-1], a.shape[1])
        return gradient_x, gradient_seen, None, None, None, gradient_a, gradient_b, None
