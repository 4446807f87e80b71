"""Trials: a sample's model with adapters of the method in it, ready to be looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from peftcore import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model
from peftcore.peft_type import PeftType
from peftcore.testing.samples import Sample
from peftcore.testing.snapshot import Snapshot


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let everything in the block be drawn from a seed; torch's generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def perturb(model: PeftModel, adapter_name: str | None = None, *, scale: float = 0.5, seed: int = 0) -> None:
    """Move an adapter away from where it started, as training would.

    Most methods start with zeros, behind which almost any mistake hides.

    Args:
        model: The adapted model.
        adapter_name: Whose parameters; the active adapters' if None.
        scale: Standard deviation of the normal numbers added to every parameter that trains.
        seed: What they are drawn from.
    """
    active = model.active_adapters
    if adapter_name is not None:
        model.set_adapter(adapter_name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.add_(noise.to(parameter))
    if adapter_name is not None:
        model.set_adapter(active)


@dataclass(frozen=True)
class Case:
    """A sample, and the options of two configs for its layers.

    Attributes:
        method: The method's name.
        sample: The model.
        options: Of the first adapter's config.
        other: Of a second adapter's config, where a check needs one.
        scale: How far :func:`perturb` moves adapters.
        number: Which of the author's configs the options are.
    """

    method: str
    sample: Sample
    options: Mapping[str, Any]
    other: Mapping[str, Any]
    scale: float = 0.5
    number: int = 0

    def __str__(self) -> str:
        return f"{self.sample.name}-config{self.number}"

    def config(self, options: Mapping[str, Any] | None = None) -> PeftConfig:
        """Make a config for the sample's layers, with the first adapter's options if none are given."""
        config_cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.declare(self.method)]
        return config_cls(**{**self.sample.targets, **(self.options if options is None else options)})

    def flipped(self) -> Case:
        """Return the case with the two configs exchanged."""
        return replace(self, options=self.other, other=self.options)

    def gently(self) -> Case:
        """Return the case with adapters moved less far, for dtypes so coarse that large changes multiply rounding."""
        return replace(self, scale=self.scale / 4)


class Trial:
    """A sample's model with one adapter in it, and what it was before.

    Args:
        case: Which model and configs.
        name: The first adapter's name.
        perturbed: Whether to move the adapter away from its start.
        dtype: The frozen model's.
        rounded_to: A coarser dtype whose numbers the frozen model and the inputs hold.
        seed: What the adapter's start is drawn from.
        **build: For :func:`peftcore.get_peft_model`.

    Attributes:
        before: The frozen model, before there was any adapter.
        frozen: The frozen model's output for :attr:`x`.
        model: The adapted model.
        x: A batch of four rows.
    """

    def __init__(
        self,
        case: Case,
        name: str = "default",
        *,
        perturbed: bool = True,
        dtype: torch.dtype = torch.float32,
        rounded_to: torch.dtype | None = None,
        seed: int = 1,
        **build: Any,
    ) -> None:
        self.case = case
        self.dtypes = (rounded_to or dtype, dtype)
        self.x = self.batch(4)
        user_model = case.sample.model().to(self.dtypes[0]).to(dtype)
        self.before = Snapshot.of(user_model)
        with torch.no_grad():
            self.frozen: Tensor = user_model(self.x)
        with seeded(seed):
            self.model = get_peft_model(user_model, case.config(), name, **build)
        if perturbed:
            self.perturb(name, seed)

    @property
    def user_model(self) -> nn.Module:
        """The user's model, adapters in it or not."""
        return self.model.get_base_model()

    def batch(self, rows: int) -> Tensor:
        """Make an input of so many rows, in the model's dtype."""
        x = self.case.sample.batch(rows)
        return x.to(self.dtypes[0]).to(self.dtypes[1]) if x.is_floating_point() else x

    def perturb(self, name: str, seed: int) -> None:
        """Move an adapter away from where it is."""
        perturb(self.model, name, scale=self.case.scale, seed=seed)

    def add(
        self, name: str, options: Mapping[str, Any] | None = None, *, perturbed: bool = True, seed: int = 2
    ) -> None:
        """Put a second adapter into the model, with the case's other options if none are given; it is not active."""
        with seeded(seed):
            self.model.add_adapter(name, self.case.config(self.case.other if options is None else options))
        if perturbed:
            self.perturb(name, seed)

    def output(self, *active: str, x: Tensor | None = None, **keywords: Any) -> Tensor:
        """Return the model's output without gradients.

        Args:
            *active: Adapters to make active before, in order; those that are active stay so if none is named.
            x: The input; :attr:`x` if None.
            **keywords: For the model.
        """
        if active:
            self.model.set_adapter(list(active))
        with torch.no_grad():
            output: Tensor = self.model(self.x if x is None else x, **keywords)
        return output
