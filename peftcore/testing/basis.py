"""What all checks stand on: what the author says of the method, and the cases that follow from it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import pytest

from peftcore import PeftMethod, get_peft_model
from peftcore.adapters.base import Adapter
from peftcore.exceptions import CompositionError, ConfigError, NotMergeableError, PeftCoreError, TargetError
from peftcore.registry import registry
from peftcore.testing.closeness import EXACT, assert_close
from peftcore.testing.samples import SAMPLES, Sample
from peftcore.testing.snapshot import Snapshot
from peftcore.testing.trials import Case, Trial, seeded


class Refusal(NamedTuple):
    """A sample that a method refuses with one of the configs, and the error by which it does."""

    case: Case
    error: PeftCoreError


class MethodTests:
    """Checks of a method that adapts layers; a subclass says which.

    A check may be replaced only by one that is marked ``@pytest.mark.xfail(reason=...)``, so that whatever a method
    does not keep stands written in its tests.
    """

    #: The method's name, that of its entry point.
    method: ClassVar[str]
    #: Keywords of at least two different configs, without the targets; different in rank, say, or in shape.
    configs: ClassVar[Sequence[Mapping[str, Any]]]
    #: Kinds of layer to check; those of the method's adapter class if None.
    kinds: ClassVar[Collection[str] | None] = None
    #: The models to check on; an author who brings a new kind of layer adds one.
    samples: ClassVar[Sequence[Sample]] = SAMPLES
    #: How far adapters are moved from their start: standard deviation of what is added to each parameter.
    perturbation: ClassVar[float] = 0.5
    #: Why a new adapter changes the model's output, if it is meant to.
    no_identity_because: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith("peftcore.testing."):
            check_overrides(cls)
            _check_statement(cls)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a check that takes ``case`` for every case, one that takes ``first_case`` for one per sample."""
        for argument, cases in (("case", type(self).cases), ("first_case", type(self).first_cases)):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, cases(), ids=str)

    # -------------------------------------------------------------------------------------------- the method

    @classmethod
    def peft_method(cls) -> PeftMethod:
        """Return the method, its plugin imported."""
        return registry[cls.method]

    @classmethod
    def adapter_cls(cls) -> type[Adapter]:
        """Return the class of the method's adapter modules."""
        adapter_cls = cls.peft_method().adapter_cls
        assert adapter_cls is not None, f"The method {cls.method!r} has no adapter_cls, so it adapts no layers."
        return adapter_cls

    @classmethod
    def checked_kinds(cls) -> Collection[str]:
        """Return the kinds of layer that the checks run on."""
        return cls.adapter_cls().kinds if cls.kinds is None else cls.kinds

    @classmethod
    def cases(cls) -> list[Case]:
        """Return every sample with every config that the method accepts for it."""
        return _examine(cls)[0]  # type: ignore[arg-type]  # mypy takes classes for unhashable

    @classmethod
    def first_cases(cls) -> list[Case]:
        """Return every sample with the first config that the method accepts for it."""
        return list({case.sample.name: case for case in reversed(cls.cases())}.values())[::-1]

    @classmethod
    def refusals(cls) -> list[Refusal]:
        """Return what the method refuses."""
        return _examine(cls)[1]  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------ shared by the checks

    def together(self, trial: Trial, *names: str) -> bool:
        """Activate adapters together, and say whether that went; it may be refused where they stand for whole layers.

        Args:
            trial: The model; what is active in it stays active if that is refused.
            *names: The adapters, in order.
        """
        __tracebackhide__ = True
        before = trial.model.active_adapters
        try:
            trial.model.set_adapter(list(names))
        except CompositionError as error:
            assert self.adapter_cls().replaces_layer, f"Adapters of this method can't be active together: {error}"
            assert trial.model.active_adapters == before, "What is active has changed, although that was refused."
            return False
        return True

    def merged(self, trial: Trial, *names: str, **options: Any) -> bool:
        """Merge, and say whether that went; for a method that can't be merged, check that it is refused as it should.

        Args:
            trial: The model, with what is to be merged active.
            *names: Adapters; the active ones if none is named.
            **options: For ``merge_adapter``.
        """
        __tracebackhide__ = True
        # A property where merging depends on the config.
        declared = self.adapter_cls().mergeable
        before, expected = Snapshot.of(trial.user_model), trial.output()
        try:
            trial.model.merge_adapter(list(names) or None, **options)
        except NotMergeableError as error:
            assert declared is not True, f"The adapter's class says that it is mergeable, but merging says: {error}"
        else:
            assert declared is not False, "The adapter's class says that it is not mergeable, but merging it works."
            return True
        cause = "Is something written before every part was asked whether it can be merged?"
        before.assert_same(trial.user_model, "After a merge that was refused", cause)
        assert_close(trial.output(), expected, "After a merge that was refused, the output differs", cause, EXACT)
        return False


@functools.cache
def _examine(cls: type[MethodTests]) -> tuple[list[Case], list[Refusal]]:
    accepted: list[Case] = []
    refusals: list[Refusal] = []
    kinds = cls.checked_kinds()
    for sample in (sample for sample in cls.samples if sample.kind in kinds):
        going: list[Case] = []
        for number, options in enumerate(cls.configs):
            case = Case(cls.method, sample, options, options, cls.perturbation, number)
            refusal = _refusal(case)
            refusals += [refusal] if refusal else []
            going += [] if refusal else [case]
        following = [*going[1:], *going[:1]]
        accepted += [replace(case, other=next.options) for case, next in zip(going, following, strict=True)]
    return accepted, refusals


def _refusal(case: Case) -> Refusal | None:
    """Try a case; whatever fails otherwise than by a named refusal is left to the checks."""
    config = case.config()
    try:
        with seeded(0):
            get_peft_model(case.sample.model(), config)
    except (ConfigError, TargetError) as error:
        return Refusal(case, error)
    except Exception:
        return None
    return None


def check_overrides(cls: type) -> None:
    """Refuse a suite that replaces a check without saying why.

    Raises:
        TypeError: It does.
    """
    for name, value in vars(cls).items():
        if not name.startswith("test_") or not any(hasattr(base, name) for base in cls.__bases__):
            continue
        marks = [mark for mark in getattr(value, "pytestmark", ()) if mark.name == "xfail"]
        if not any(mark.kwargs.get("reason") for mark in marks):
            raise TypeError(
                f"{cls.__name__}.{name} replaces a check of the conformance kit without saying why. "
                "Mark it @pytest.mark.xfail(reason=...), or give it another name."
            )


def _check_statement(cls: type[MethodTests]) -> None:
    if not hasattr(cls, "method"):
        return  # a base class that an author makes for several methods
    configs = getattr(cls, "configs", ())
    if isinstance(configs, Mapping) or len(configs) < 2 or any(one == two for one, two in combinations(configs, 2)):
        raise TypeError(
            f"{cls.__name__}.configs must hold at least two different configs (keywords, without targets): "
            "adapters that are alike hide what they share by mistake."
        )
