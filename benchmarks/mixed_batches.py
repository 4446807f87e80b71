"""A batch in which each row has its own adapter, against the frozen model on the same batch."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.models import Feedforward
from benchmarks.pairs import (
    SIDES,
    Quantities,
    Row,
    Table,
    libraries,
    median_seconds,
    over,
    paired,
    ratios,
    rounds,
    series,
    spread,
)

TITLE = "Mixed batches"
ABOUT = """\
Forward, without gradients, of six square Linears of width 1,024 one behind the other, fp32, with as many adapters (LoRA
of rank 16) as the batch has rows: each row has its own, given by `adapter_names`, in an order of chance.
Overhead is the time beyond the frozen model's on the same batch, as a share of the frozen model's in the same round.
A measurement is the median of calls repeated for a tenth of a second, at least three.
peftcore keeps the factors of a layer stacked while the same adapters are asked for and nothing of them changes; where
each row has many tokens, it multiplies adapter by adapter.
Both libraries' outputs are compared before anything is timed."""

DEPTH = 6
WIDTH = 1024


class Case(NamedTuple):
    """A batch."""

    adapters: int
    tokens: int

    def __str__(self) -> str:
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens} tokens"
        return f"{self.adapters} adapters, {tokens} per row"

    @property
    def to_reach(self) -> str:
        """The target for the overhead over HF PEFT's."""
        return "≤ 0.25" if self.tokens == 1 else "≤ 1"


_CASES = (Case(8, 1), Case(32, 1), Case(128, 1), Case(8, 64), Case(32, 64))


def measure(quick: bool) -> list[Table]:
    """Time a forward pass."""
    cases = _CASES[:1] if quick else _CASES
    return [Table([row for case in cases for row in _rows(case, 3 if quick else 15)])]


def _rows(case: Case, count: int) -> list[Row]:
    calls = _calls(case)
    _check_alike(calls)
    sides = {side: partial(_seconds, call) for side, call in calls.items()}
    found = rounds(sides, count, label=f"mixed batch, {case}")
    frozen = series(found, "frozen", "forward")
    overheads = {side: ratios(over(found, side, "frozen", "forward"), frozen) for side in SIDES}
    return [
        paired(f"{case}: forward (frozen: {spread(frozen, 1e3)})", "ms", found, "forward"),
        Row(f"{case}: overhead", "%", overheads, to_reach=case.to_reach),
    ]


def _calls(case: Case) -> dict[str, Any]:
    """Return a forward pass of the frozen model, and of each library's adapters on it."""
    x = torch.randn(case.adapters, case.tokens, WIDTH)
    names = [f"a{number}" for number in torch.randperm(case.adapters).tolist()]
    calls: dict[str, Any] = {"frozen": partial(_frozen().eval(), x)}
    for side, library in libraries().items():
        config = library.LoraConfig(r=16, target_modules=["linear"])
        model = library.get_peft_model(_frozen(), config, adapter_name="a0")
        for number in range(1, case.adapters):
            model.add_adapter(f"a{number}", config)
        _stir(model)
        calls[side] = partial(model.eval(), x, adapter_names=names)
    return calls


def _frozen() -> Feedforward:
    torch.manual_seed(0)
    return Feedforward(DEPTH, WIDTH)


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Give every adapter's factors values of its own, the same in both libraries."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            adapter = next(int(piece[1:]) for piece in name.split(".") if piece[0] == "a" and piece[1:].isdigit())
            weight.normal_(std=0.02, generator=torch.Generator().manual_seed(2 * adapter + ("lora_B" in name)))


def _seconds(call: Any) -> Quantities:
    return {"forward": median_seconds(partial(_without_gradients, call), 0.1, at_least=3)}


@torch.no_grad()
def _without_gradients(call: Any) -> Tensor:
    output: Tensor = call()
    return output


def _check_alike(calls: dict[str, Any]) -> None:
    ours, theirs = (_without_gradients(calls[side]) for side in SIDES)
    if not torch.allclose(ours, theirs, atol=1e-4) or torch.allclose(ours, _without_gradients(calls["frozen"]), 1e-2):
        raise RuntimeError("The libraries' outputs differ, or the adapters do nothing.")
