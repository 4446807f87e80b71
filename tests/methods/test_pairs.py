"""Any two methods on one layer, in both orders: forward, the merged weight and the mixed batch are one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from peftcore import PeftModel, get_peft_model
from peftcore.adapters.base import Adapter
from peftcore.call_state import BASE
from peftcore.exceptions import CompositionError
from peftcore.registry import registry
from peftcore.testing import Tolerance, assert_close, perturb
from peftcore.tuner import view_of

from .small_configs import first_party_methods, small_config

TOLERANCE = Tolerance(1e-5, "both are float32 sums of the same products, in different orders")
BATCH = 3


class Kind(NamedTuple):
    layer: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]


KINDS = {
    "linear": Kind(lambda: nn.Linear(16, 8), lambda: torch.randn(BATCH, 5, 16)),
    "conv2d": Kind(lambda: nn.Conv2d(8, 16, 3, padding=1), lambda: torch.randn(BATCH, 8, 4, 3)),
    "embedding": Kind(lambda: nn.Embedding(16, 8), lambda: torch.randint(16, (BATCH, 9))),
}


def adapter_cls(method: str) -> type[Adapter] | None:
    return registry[method].adapter_cls


MERGEABLE = [name for name in first_party_methods() if (cls := adapter_cls(name)) is not None and cls.mergeable]


def kinds_of(method: str) -> set[str]:
    cls = adapter_cls(method)
    assert cls is not None
    views = {kind: view_of(made.layer()) for kind, made in KINDS.items()}
    return {kind for kind, base in views.items() if base is not None and cls.can_adapt(base)}


def stands_alone(method: str) -> bool:
    return bool(getattr(adapter_cls(method), "replaces_layer", False))


PAIRS = [
    pytest.param(kind, first, second, id=f"{kind}-{first}-{second}")
    for first, second in combinations(MERGEABLE, 2)
    for kind in sorted(kinds_of(first) & kinds_of(second))
]
TOGETHER = [pair for pair in PAIRS if not any(map(stands_alone, pair.values[1:]))]
APART = [pair for pair in PAIRS if pair not in TOGETHER]


class Pair:
    """One layer with an adapter of each of two methods, both moved away from their start; the methods name them."""

    def __init__(self, kind: str, first: str, second: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            layer = nn.Sequential(KINDS[kind].layer())
            self.x = KINDS[kind].inputs()
            with torch.no_grad():
                self.outputs = {BASE: layer(self.x)}
            self.model: PeftModel = get_peft_model(layer, small_config(first, target_modules=["0"]), first)
            self.model.add_adapter(second, small_config(second, target_modules=["0"]))
        for seed, name in enumerate((first, second)):
            perturb(self.model, name, scale=0.3, seed=seed)
        self.model.eval()
        for name in (first, second):
            self.outputs[name] = self.output(name)

    def output(self, *active: str, rows: list[str] | None = None) -> Tensor:
        if active:
            self.model.set_adapter(list(active))
        with torch.no_grad():
            return self.model(self.x) if rows is None else self.model(self.x, adapter_names=rows)

    def assert_gives(self, expected: Tensor, when: str) -> None:
        assert_close(self.output(), expected, f"{when}, the output differs", "Do fold and forward agree?", TOLERANCE)

    def assert_mixes(self) -> None:
        """Check that in a batch of both and neither, each row gets what its adapter gives it alone."""
        for names in permutations([*self.outputs]):
            expected = torch.stack([self.outputs[name][row] for row, name in enumerate(names)])
            mixed = self.output(rows=list(names))
            assert_close(mixed, expected, f"The batch {names} differs from its rows alone", "Rows?", TOLERANCE)


def test_the_methods_are_found() -> None:
    assert len(MERGEABLE) > 1
    assert {name for pair in PAIRS for name in pair.values[1:]} == set(MERGEABLE)


@pytest.mark.parametrize(("kind", "first", "second"), TOGETHER)
def test_forward_merged_and_mixed_batch_are_one(kind: str, first: str, second: str) -> None:
    pair = Pair(kind, first, second)
    for order in ((first, second), (second, first)):
        expected = pair.output(*order)
        for name, alone in pair.outputs.items():
            assert not torch.allclose(expected, alone, atol=1e-3), f"together they do what {name} does alone"

        pair.model.merge_adapter()
        pair.assert_gives(expected, "With both merged at once")
        pair.model.unmerge_adapter()
        pair.assert_gives(expected, "With both taken out again")
        for name in order:
            pair.model.merge_adapter([name])
            pair.assert_gives(expected, f"With both merged one by one, up to {name}")
        pair.model.unmerge_adapter()

        pair.assert_mixes()
        pair.assert_gives(expected, "After mixed batches")


@pytest.mark.parametrize(("kind", "first", "second"), APART)
def test_what_stands_for_the_whole_layer_shares_batches_but_no_row(kind: str, first: str, second: str) -> None:
    pair = Pair(kind, first, second)
    for order in ((first, second), (second, first)):
        with pytest.raises(CompositionError, match=f"{first}|{second}"):
            pair.model.set_adapter(list(order))
        pair.assert_mixes()
