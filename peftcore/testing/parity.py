"""Parity: a method that HF PEFT has too gives the same outputs there, and its files travel in both directions.

A subclass gives the method's name and a model with options for each case; the rest is inherited::

    from peftcore.testing import ParityCase, ParityTests

    class TestParity(ParityTests):
        method = "c3a"
        cases = {"linear": ParityCase(mlp, torch.randn(4, 8), {"target_modules": ["0"], "block_size": 2})}

What HF PEFT computes otherwise than the paper does is no case; test it beside, and say in a line what is wrong there.
Needs ``pip install peft``.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import peftcore
from peftcore.registry import registry
from peftcore.testing.basis import check_overrides
from peftcore.testing.closeness import Tolerance, assert_close
from peftcore.testing.trials import perturb, seeded

PARITY = Tolerance(1e-5, "both compute the same in float32, if in another order")
#: What an adapter must change the output by, at least, for a comparison to mean something.
VISIBLE = 1e-3
#: Kolmogorov's and Smirnov's bound for two samples; one in ten thousand pairs from one distribution is above it.
_KOLMOGOROV = 2.25


def hf_peft() -> ModuleType:
    """Import HF PEFT, where it is needed."""
    return importlib.import_module("peft")


@dataclass(frozen=True)
class ParityCase:
    """One model and one config, in both libraries.

    Attributes:
        build: Makes the frozen model; torch's generator is seeded, so that it is the same one each time.
        inputs: What the model is called with: a tensor, several, or keywords; nothing in :attr:`ParityTests.starts`.
        options: The config's, for both.
        model_scale: Standard deviation of what is added to the frozen parameters: transformers' layers start so small
            that errors would hide.
    """

    build: Callable[[], nn.Module]
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    model_scale: float = 0.0

    def frozen(self) -> nn.Module:
        """Return the model without adapters, in evaluation."""
        with seeded(0):
            model = self.build().eval()
            if self.model_scale:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(torch.randn_like(parameter) * self.model_scale)
        return model

    @torch.no_grad()
    def answer(self, model: nn.Module) -> Tensor:
        """Return a model's output: the tensor, or the first of several (the logits, say)."""
        if isinstance(self.inputs, Mapping):
            output = model(**self.inputs)
        else:
            output = model(*(self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)))
        return output if isinstance(output, Tensor) else output[0]


class Libraries:
    """The same adapter in both libraries.

    Args:
        method: The method's name.
        case: The model and the config's options.
        scale: How far adapters are moved from their start: standard deviation of what is added to each parameter.
        repeated: As :attr:`ParityTests.repeated`.
    """

    def __init__(self, method: str, case: ParityCase, scale: float = 0.5, repeated: Sequence[str] = ()) -> None:
        self.method, self.case, self.scale, self.repeated = method, case, scale, repeated

    def ours(self, *, perturbed: bool = True) -> Any:
        """Return the model as peftcore adapts it."""
        config = registry[self.method].config_cls(**self.case.options)
        return self._adapted(peftcore, config, perturbed)

    def theirs(self, *, perturbed: bool = True) -> Any:
        """Return the model as HF PEFT adapts it."""
        peft = hf_peft()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[self.method.upper()]](**self.case.options)
            adapted = self._adapted(peft, config, perturbed)
        # Saving would write a model card, which takes longer than all the rest.
        adapted.create_or_update_model_card = lambda directory: None
        return adapted

    def _adapted(self, library: ModuleType, config: Any, perturbed: bool) -> Any:
        model = self.case.frozen()
        with seeded(1):
            adapted = library.get_peft_model(model, config).eval()
        if perturbed:
            perturb(adapted, scale=self.scale)
        return adapted

    def new_states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what a new adapter holds here, and what one holds there, by the names in files."""
        ours, theirs = self.ours(perturbed=False), self.theirs(perturbed=False)
        return peftcore.get_peft_model_state_dict(ours), their_state(theirs)

    def load_here(self, directory: Path, **kwargs: Any) -> Any:
        """Load a file with peftcore."""
        return peftcore.PeftModel.from_pretrained(self.case.frozen(), directory, **kwargs).eval()

    def load_there(self, directory: Path, **kwargs: Any) -> Any:
        """Load a file with HF PEFT, which only warns of tensors and fields that it does not know."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("error", message="Unexpected keyword")
            if self.repeated:
                name = rf"'\S+\.({'|'.join(self.repeated)})\.default(\.weight)?'"
                warnings.filterwarnings("ignore", message=rf"Found missing adapter keys[^[]*\[({name}(, )?)+\]")
            return hf_peft().PeftModel.from_pretrained(self.case.frozen(), directory, **kwargs).eval()


def save(model: Any, directory: Path) -> dict[str, Tensor]:
    """Save a model's adapter by its own library, without frozen embeddings, and return what the file holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, save_embedding_layers=False)
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in shape, dtype and values, up to the last digit."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one, other, rtol=1e-6, atol=0) if one.is_floating_point() else torch.equal(one, other)


def their_state(model: Any) -> dict[str, Tensor]:
    """Return the state of an adapter of HF PEFT's, without frozen embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state: dict[str, Tensor] = hf_peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def check_same_distribution(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Check that what two libraries start with could come from one distribution, by Kolmogorov's and Smirnov's test.

    Args:
        here, there: Tensors by name; larger ones tell more.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (here, there)]
    assert shapes[0] == shapes[1], f"The new adapters' tensors differ: {shapes[0]} here, {shapes[1]} in HF PEFT."
    for name, tensor in there.items():
        ours, theirs = here[name].double().flatten().sort().values, tensor.double().flatten().sort().values
        marks = torch.cat([ours, theirs])
        shares = [torch.searchsorted(sample, marks, right=True) / len(sample) for sample in (ours, theirs)]
        apart, allowed = (shares[0] - shares[1]).abs().max().item(), _KOLMOGOROV * (2 / len(ours)) ** 0.5
        assert apart <= allowed, (
            f"{name} starts from another distribution than in HF PEFT: the shares below one number differ by "
            f"{apart:.2g}, and by chance they would stay within {allowed:.2g}."
        )


class ParityTests:
    """A method's agreement with HF PEFT; a subclass says which method, and on what."""

    #: The method's name; HF PEFT's is the same in upper case.
    method: ClassVar[str]
    #: Models and options on which both have to agree, by name.
    cases: ClassVar[Mapping[str, ParityCase]]
    #: Larger layers and options with which new adapters have to start from the same distribution, by name.
    starts: ClassVar[Mapping[str, ParityCase]] = {}
    #: How far adapters are moved from their start: standard deviation of what is added to each parameter.
    perturbation: ClassVar[float] = 0.5
    #: Names of shared tensors that HF PEFT misses in every layer, to no harm, where the file holds them once.
    repeated: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_overrides(cls)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a check that takes ``libraries`` for every case, one that takes ``start`` for every start."""
        for argument, cases in (("libraries", type(self).cases), ("start", type(self).starts)):
            if argument in metafunc.fixturenames:
                both = [Libraries(self.method, case, self.perturbation, self.repeated) for case in cases.values()]
                metafunc.parametrize(argument, both, ids=list(cases))

    def check_same(self, libraries: Libraries, written: Any, read: Any) -> None:
        """Check what :meth:`check_same_output` does; merged too, if that is possible, which changes both models.

        Args:
            libraries: The case.
            written: The model whose adapter was saved.
            read: The model into which it was loaded.
        """
        expected = self.check_same_output(libraries, written, read)
        if self.merges():
            for model in (written, read):
                merged = libraries.case.answer(model.merge_and_unload())
                self._check_close(merged, expected, f"Merged by {type(model).__module__}, the output differs")

    def check_same_output(self, libraries: Libraries, written: Any, read: Any) -> Tensor:
        """Check that two models have equal outputs, which are not the frozen model's, and return the first's."""
        answer = libraries.case.answer
        expected, frozen = answer(written), answer(libraries.case.frozen())
        visible = VISIBLE * max(1.0, frozen.abs().max().item())
        # Virtual tokens in front of the others have outputs of their own.
        changed = expected[:, -frozen.shape[1] :] if expected.shape != frozen.shape else expected
        assert (changed - frozen).abs().max() > visible, "The adapter does nothing, so nothing is compared."
        self._check_close(answer(read), expected, "Loaded by the other library, the output differs")
        return expected

    @staticmethod
    def _check_close(actual: Tensor, expected: Tensor, what: str) -> None:
        # Of the largest entry, or of 1 where all are smaller.
        allowed = Tolerance(PARITY.relative * max(1.0, 1 / max(expected.abs().max().item(), 1e-9)), PARITY.reason)
        assert_close(actual, expected, what, "Is the mathematics, or the scaling, another one there?", allowed)

    @classmethod
    def merges(cls) -> bool:
        """Return whether the method's adapters can be merged."""
        adapter_cls = registry[cls.method].adapter_cls
        return adapter_cls is not None and adapter_cls.mergeable

    # --------------------------------------------------------------------------------------------- checks

    def test_what_is_written_here_acts_the_same_there(self, libraries: Libraries, tmp_path: Path) -> None:
        """An adapter saved here and loaded there gives the same output; merged too, if it can be."""
        ours = libraries.ours()
        save(ours, tmp_path)
        self.check_same(libraries, ours, libraries.load_there(tmp_path))

    def test_what_is_written_there_acts_the_same_here(self, libraries: Libraries, tmp_path: Path) -> None:
        """An adapter saved there gives the same output here, and saved again its file holds the same tensors."""
        theirs = libraries.theirs()
        there = save(theirs, tmp_path / "there")
        ours = libraries.load_here(tmp_path / "there")
        here = save(ours, tmp_path / "here")
        changed = [name for name, tensor in here.items() if name not in there or not is_same(tensor, there[name])]
        repeats = tuple(f".{name}{end}" for name in self.repeated for end in ("", ".weight"))
        lost = [name for name in there if name not in here and not name.endswith(repeats)]
        assert not changed + lost, f"What HF PEFT wrote changes when it is saved here: {', '.join(changed + lost)}."
        self.check_same(libraries, theirs, ours)

    def test_what_is_written_there_is_taken_as_it_is(self, libraries: Libraries, tmp_path: Path) -> None:
        """A file from there goes into an adapter on the meta device, so no tensor is missing in it."""
        theirs = libraries.theirs()
        save(theirs, tmp_path)
        ours = libraries.load_here(tmp_path, low_cpu_mem_usage=True)
        self.check_same_output(libraries, theirs, ours)

    def test_a_state_of_theirs_goes_into_an_adapter_of_ours(self, libraries: Libraries) -> None:
        """The state of an adapter in a model there goes into one here, without a file."""
        theirs, ours = libraries.theirs(), libraries.ours()
        peftcore.set_peft_model_state_dict(ours, their_state(theirs))
        self.check_same_output(libraries, theirs, ours)

    def test_both_start_from_one_distribution(self, start: Libraries) -> None:
        """New adapters of both libraries start from one distribution, tensor by tensor."""
        check_same_distribution(*start.new_states())
