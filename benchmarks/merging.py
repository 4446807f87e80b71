"""Merging, unmerging, and merging for good, in the shape of a language model of 1.1 billion parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import PROJECTIONS
from benchmarks.pairs import SIDES, Grid, Quantities, Round, elapsed, libraries, ratios, rounds, series, spread

TITLE = "Merging"
ABOUT = """\
LoRA of rank 16 on the seven projections of each block, in the shape of a Llama of 1.1 billion parameters (22 blocks,
width 2,048, keys and values of 256, feed-forward 5,632).
The weights are in bfloat16 and the factors in float32, which is what both libraries make for such a model.
`merge_adapter`, `unmerge_adapter`, and `merge_and_unload` of the same model.
The loop is `W += B @ A`, over the same weights and factors: first with the factors as they are (the product is made in
float32 and rounded into the sum), then with factors brought to the weights' dtype beforehand.
Memory: the most that the allocator holds during the work beyond what it held before, by torch's profiler.
`merge_and_unload` gives back the factors as it goes, which is counted, so it may be below `merge_adapter`."""

RANK, BLOCKS, WIDTH, FEED_FORWARD, KEYS = 16, 22, 2048, 5632, 256
_SIZES = {
    "q": (WIDTH, WIDTH),
    "k": (WIDTH, KEYS),
    "v": (WIDTH, KEYS),
    "o": (WIDTH, WIDTH),
    "gate": (WIDTH, FEED_FORWARD),
    "up": (WIDTH, FEED_FORWARD),
    "down": (FEED_FORWARD, WIDTH),
}
_LARGEST = 2 * WIDTH * FEED_FORWARD
QUANTITIES = ("merge", "unmerge", "merge and unload")
LOOPS = {"loop": torch.float32, "loop in bfloat16": torch.bfloat16}


def measure(quick: bool) -> list[Grid]:
    """Time both libraries and the loops on one model after the other, then count their memory."""
    blocks = 2 if quick else BLOCKS
    model = _model(blocks)
    sides: dict[str, Callable[[], Quantities]] = {
        side: partial(_library, library, model) for side, library in libraries().items()
    }
    sides |= {name: partial(_loop, dtype, model) for name, dtype in LOOPS.items()}
    found = rounds(sides, 2 if quick else 3, label="merging")
    return [_seconds(found), _compared(found), _memory(sides)]


class _Block(nn.Module):
    """The projections of one block."""

    def __init__(self) -> None:
        super().__init__()
        for name in PROJECTIONS:
            self.add_module(name, nn.Linear(*_SIZES[name], bias=False, dtype=torch.bfloat16))


def _model(blocks: int) -> nn.Module:
    """Return the embedding, the blocks and the head, frozen."""
    stack = nn.ModuleList(_Block() for _ in range(blocks))
    ends = [nn.Embedding(32_000, WIDTH), nn.Linear(WIDTH, 32_000, bias=False)] if blocks == BLOCKS else []
    return nn.ModuleDict({"blocks": stack, "ends": nn.ModuleList(ends).bfloat16()}).requires_grad_(False)


def _library(library: ModuleType, model: nn.Module, measured: Callable[..., Any] = elapsed) -> Quantities:
    config = library.LoraConfig(r=RANK, target_modules=list(PROJECTIONS), init_lora_weights=False)
    adapted = library.get_peft_model(model, config)
    merge, _ = measured(adapted.merge_adapter)
    unmerge, _ = measured(adapted.unmerge_adapter)
    unload, _ = measured(adapted.merge_and_unload)
    return {"merge": merge, "unmerge": unmerge, "merge and unload": unload}


def _loop(dtype: torch.dtype, model: nn.Module, measured: Callable[..., Any] = elapsed) -> Quantities:
    weights = [module.weight for module in model["blocks"].modules() if isinstance(module, nn.Linear)]
    factors = [
        (torch.randn(len(weight), RANK).to(dtype) / WIDTH, torch.randn(RANK, weight.shape[1]).to(dtype))
        for weight in weights
    ]
    seconds, _ = measured(partial(_add_products, weights, factors))
    return dict.fromkeys(QUANTITIES, seconds)


@torch.no_grad()
def _add_products(weights: list[Tensor], factors: list[tuple[Tensor, Tensor]]) -> None:
    for weight, (b, a) in zip(weights, factors, strict=True):
        weight += b @ a


def _seconds(found: list[Round]) -> Grid:
    lines = [(side, *(spread(series(found, side, quantity)) for quantity in QUANTITIES)) for side in found[0]]
    return Grid(("seconds", *QUANTITIES), lines, "Time:")


def _compared(found: list[Round]) -> Grid:
    ours, theirs = SIDES
    lines = [
        (f"peftcore / {other}", *(_ratio(found, ours, other, quantity) for quantity in QUANTITIES))
        for other in (theirs, *LOOPS)
    ]
    return Grid(("time", *QUANTITIES), lines, "To reach: at most 1 of HF PEFT's, at most 1.5 of the loop's:")


def _ratio(found: list[Round], side: str, other: str, quantity: str) -> str:
    return spread(ratios(series(found, side, quantity), series(found, other, quantity)))


def _memory(sides: dict[str, Callable[..., Quantities]]) -> Grid:
    counted = {side: run(measured=_peak) for side, run in sides.items()}
    lines = [
        (side, *(spread([held[quantity] / _LARGEST]) for quantity in QUANTITIES)) for side, held in counted.items()
    ]
    return Grid(("layers", *QUANTITIES), lines, "Memory at the peak, in sizes of the largest layer's weight:")


def _peak(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the most bytes that some work holds at one time beyond what there was before, and its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, result
