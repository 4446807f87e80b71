"""Every method that both libraries have: putting it in, a training step, inference, merging."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.models import Feedforward
from benchmarks.pairs import (
    SIDES,
    Grid,
    Quantities,
    Round,
    elapsed,
    libraries,
    median_seconds,
    over,
    ratios,
    rounds,
    series,
    spread,
)
from peftcore.exceptions import NotMergeableError
from peftcore.registry import registry

TITLE = "Every method"
ABOUT = """\
Each method that both libraries have, fp32, with the configs' defaults but for what has to be given.
Methods of layers adapt four square Linears of width 1,024 one behind the other (LN tuning the norms in front of them,
trainable tokens an embedding in front of them); methods of prompts a Llama of four layers and width 256.
Adapters are moved away from their start, which for most is zero.
Injection is `get_peft_model`; a step is forward and backward, the gradient of the input included; inference is forward
alone, of 64 tokens; merging is `merge_adapter`.
The figures are peftcore's time over HF PEFT's: of the whole, and then of what comes on top of the frozen model's time
in the same round.
Where nothing of the frozen model needs a gradient (behind token ids), its step is its forward.
A dash in place of merging: one of the two can't merge it; in place of an overhead: HF PEFT's is below two percent."""

WIDTH, DEPTH = 1024, 4
TOKENS = (64, 512)
STEPS = tuple(f"step, {tokens} tokens" for tokens in TOKENS)
CALLS = (*STEPS, "inference")
QUANTITIES = ("injection", *CALLS, "merge")


VOCABULARY = 1000


class Case(NamedTuple):
    """A method, what it adapts, and with which options."""

    method: str
    build: Callable[[], nn.Module]
    options: Mapping[str, Any]

    def inputs(self, tokens: int) -> Inputs:
        """Return rows of features, or ids in rows of 64 and what the method asks for beside them."""
        rows = tokens // 64
        if self.build is _linears or self.build is _norms:
            return Inputs(torch.randn(tokens, WIDTH, requires_grad=True), {})
        asked = {"task_ids": torch.zeros(rows, dtype=torch.long)} if self.method == "multitask_prompt_tuning" else {}
        return Inputs(torch.randint(VOCABULARY, (rows, 64)), asked)


class Inputs(NamedTuple):
    """What a model is called with."""

    x: Tensor
    asked: Mapping[str, Tensor]


_LINEARS = {"target_modules": ["linear"]}
_VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 16}


def _linears() -> nn.Module:
    return Feedforward(DEPTH, WIDTH)


def _norms() -> nn.Module:
    pairs = ((nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH))
    return nn.Sequential(*(layer for pair in pairs for layer in pair)).requires_grad_(False)


def _embedding() -> nn.Module:
    linears = (nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), *linears).requires_grad_(False)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
    )
    return LlamaForCausalLM(config).requires_grad_(False)


#: Methods that stand elsewhere than on Linears.
_ELSEWHERE = {
    "adaption_prompt": (_llama, {"task_type": "CAUSAL_LM", "adapter_len": 16, "adapter_layers": 4}),
    "cartridge": (_llama, _VIRTUAL),
    "cpt": (_llama, {"task_type": "CAUSAL_LM", "cpt_token_ids": list(range(16))}),
    "multitask_prompt_tuning": (_llama, {**_VIRTUAL, "num_tasks": 2}),
    "p_tuning": (_llama, {**_VIRTUAL, "encoder_hidden_size": 256}),
    "prefix_tuning": (_llama, _VIRTUAL),
    "prompt_tuning": (_llama, _VIRTUAL),
    "ln_tuning": (_norms, {"target_modules": [str(2 * number) for number in range(DEPTH)]}),
    "trainable_tokens": (_embedding, {"target_modules": ["0"], "token_indices": list(range(64))}),
}
#: What has to be given beside the layers.
_OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 1000},
    "ia3": {"feedforward_modules": []},
}


def measure(quick: bool) -> list[Grid]:
    """Time every method; with ``quick``, a few of them."""
    cases = [case for case in _cases() if not quick or case.method in ("lora", "ia3", "prompt_tuning")]
    found = {case.method: _measured(case, 2 if quick else 3) for case in cases}
    return [
        Grid(
            ("method", *QUANTITIES),
            [(method, *(_total(found[method], quantity) for quantity in QUANTITIES)) for method in found],
            "Of the whole:",
        ),
        Grid(
            ("method", *CALLS),
            [(method, *(_overhead(found[method], quantity) for quantity in CALLS)) for method in found],
            "Of what comes on top of the frozen model's:",
        ),
    ]


def _cases() -> list[Case]:
    """Return the cases of all methods that are installed here and that HF PEFT has too."""
    import peft

    here = {method for status in registry.status() for method in status.methods}
    both = sorted(here & {kind.value.lower() for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING})
    return [_case(method) for method in both]


def _case(method: str) -> Case:
    build, options = _ELSEWHERE.get(method, (_linears, {**_LINEARS, **_OPTIONS.get(method, {})}))
    return Case(method, build, options)


def _config_cls(side: str, method: str) -> Any:
    if side == "peftcore":
        return registry[method].config_cls
    import peft

    return {kind.value.lower(): cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}[method]


def _measured(case: Case, count: int) -> list[Round]:
    torch.manual_seed(0)
    frozen, inputs = case.build(), {tokens: case.inputs(tokens) for tokens in TOKENS}
    plain = {tokens: Inputs(given.x, {}) for tokens, given in inputs.items()}
    sides: dict[str, Callable[[], Quantities]] = {"frozen": partial(_called, frozen, plain)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in SIDES:
            sides[side] = _side(side, case, frozen, inputs)
        return rounds(sides, count, label=case.method)


def _side(side: str, case: Case, frozen: nn.Module, inputs: Mapping[int, Inputs]) -> Callable[[], Quantities]:
    """Return what measures one library's adapter, all of it."""
    library, config_cls = libraries()[side], _config_cls(side, case.method)

    def inject() -> Any:
        fresh = copy.deepcopy(frozen)
        return elapsed(lambda: library.get_peft_model(fresh, config_cls(**case.options)))

    model = inject()[1]
    _move(model)
    merges = _can_merge(inject()[1])  # another one: merging may have no way back

    def quantities() -> Quantities:
        merging = {"merge": median_seconds(model.merge_adapter, 0.02, at_least=1, prepare=model.unmerge_adapter)}
        if merges:
            model.unmerge_adapter()
        return {"injection": inject()[0], **_called(model, inputs), **merging}

    def without_merging() -> Quantities:
        return {"injection": inject()[0], **_called(model, inputs)}

    return quantities if merges else without_merging


def _move(model: nn.Module) -> None:
    """Move what trains a little away from its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.add_(torch.randn_like(weight), alpha=0.01)


def _can_merge(model: Any) -> bool:
    """Whether a library can merge a method; each says in its own way that it can't."""
    with suppress(NotMergeableError, NotImplementedError, AttributeError, ValueError, TypeError):
        model.merge_adapter()
        model.unmerge_adapter()
        return True
    return False


def _called(model: nn.Module, inputs: Mapping[int, Inputs]) -> Quantities:
    """Return the seconds of steps and of inference."""
    model.train()
    found = {step: _step_seconds(model, inputs[tokens]) for step, tokens in zip(STEPS, TOKENS, strict=True)}
    model.eval()
    x, asked = inputs[TOKENS[0]]
    with torch.no_grad():
        found["inference"] = median_seconds(lambda: model(x, **asked), 0.05, at_least=2)
    return found


def _step_seconds(model: nn.Module, inputs: Inputs) -> float:
    x, asked = inputs

    def step() -> None:
        output = model(x, **asked)
        output = output if isinstance(output, Tensor) else output.logits
        if output.requires_grad:
            output.backward(torch.ones_like(output))

    def clear() -> None:
        model.zero_grad()
        x.grad = None

    return median_seconds(step, 0.05, at_least=1, prepare=clear)


def _total(found: list[Round], quantity: str) -> str:
    if any(quantity not in found[0][side] for side in SIDES):
        return "-"
    return spread(ratios(*(series(found, side, quantity) for side in SIDES)))


def _overhead(found: list[Round], quantity: str) -> str:
    frozen = series(found, "frozen", quantity)
    ours, theirs = (over(found, side, "frozen", quantity) for side in SIDES)
    if any(value < 0.02 * whole for value, whole in zip(theirs, frozen, strict=True)):
        return "-"
    return spread(ratios(ours, theirs))
