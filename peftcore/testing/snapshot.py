"""Snapshot: what a model is at one moment, to see later whether anything of it has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftcore.testing.closeness import EXACT, Tolerance, difference

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@dataclass(frozen=True)
class _Held:
    """One tensor of a model: the object itself, and its values at the time."""

    tensor: Tensor
    values: Tensor
    requires_grad: bool


@dataclass(frozen=True)
class Snapshot:
    """A model's modules, hooks, tensors and modes at one moment.

    Tensors are remembered as objects too, so that they can be looked at after they have been put elsewhere.
    """

    modules: dict[str, nn.Module]
    attributes: dict[str, frozenset[str]]
    hooks: dict[str, int]
    training: dict[str, bool]
    tensors: dict[str, _Held]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Take a snapshot of a model."""
        modules = dict(model.named_modules())
        return cls(
            modules=modules,
            attributes={path: frozenset(vars(module)) for path, module in modules.items()},
            hooks={path: _count_hooks(module) for path, module in modules.items()},
            training={path: module.training for path, module in modules.items()},
            tensors={
                name: _Held(tensor, tensor.detach().clone(), tensor.requires_grad)
                for name, tensor in _named_tensors(model)
            },
        )

    def assert_same(self, model: nn.Module, after: str, cause: str) -> None:
        """Check that a model is as it was, down to its hooks and attributes.

        Args:
            model: The model that the snapshot was taken of.
            after: What happened in between.
            cause: What would explain a change, as a question.

        Raises:
            AssertionError: It lists what has changed.
        """
        __tracebackhide__ = True
        changes = list(self._changes(Snapshot.of(model)))
        if changes:
            raise AssertionError(f"{after}, the model is not as before: {'; '.join(changes)}. {cause}")

    def assert_tensors_same(self, after: str, cause: str, tolerance: Tolerance = EXACT) -> None:
        """Check that the values of the remembered tensors are as they were, wherever the tensors are now.

        Raises:
            AssertionError: It lists the tensors that have changed, and by how much.
        """
        __tracebackhide__ = True
        apart = {name: difference(held.tensor, held.values) for name, held in self.tensors.items()}
        changed = [
            f"{name} by {apart[name]:.2g}"
            for name, held in self.tensors.items()
            if apart[name] > tolerance.allowed(held.values)
        ]
        if changed:
            raise AssertionError(f"{after}, tensors of the frozen model have changed: {', '.join(changed)}. {cause}")

    def trained(self) -> list[str]:
        """Return the names of remembered tensors that require a gradient now or have one."""
        now = {name: held.tensor for name, held in self.tensors.items()}
        return [name for name, tensor in now.items() if tensor.requires_grad or tensor.grad is not None]

    def _changes(self, now: Snapshot) -> Iterator[str]:
        yield from _renamed("module", self.modules, now.modules)
        yield from _renamed("tensor", self.tensors, now.tensors)
        for path in self.modules.keys() & now.modules.keys():
            where = path or "the model itself"
            if self.modules[path] is not now.modules[path]:
                yield f"{where} is another object, a {type(now.modules[path]).__name__}"
            for name in self.attributes[path] ^ now.attributes[path]:
                yield f"{where} has {'lost' if name in self.attributes[path] else 'got'} the attribute {name!r}"
            if self.hooks[path] != now.hooks[path]:
                yield f"{where} has {now.hooks[path]} hooks instead of {self.hooks[path]}"
            if self.training[path] != now.training[path]:
                yield f"{where} is in {'train' if now.training[path] else 'eval'} mode"
        for name in self.tensors.keys() & now.tensors.keys():
            before, after = self.tensors[name], now.tensors[name]
            if before.tensor is not after.tensor:
                yield f"{name} is another tensor object"
            if before.requires_grad != after.requires_grad:
                yield f"{name} has requires_grad={after.requires_grad}"
            if before.values.dtype != after.values.dtype or not torch.equal(before.values, after.values):
                yield f"{name} holds other values"


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _count_hooks(module: nn.Module) -> int:
    return sum(len(getattr(module, kind, None) or ()) for kind in _HOOKS)


def _renamed(what: str, before: Collection[str], now: Collection[str]) -> Iterator[str]:
    for name in [name for name in before if name not in now]:
        yield f"{what} {name} is gone"
    for name in [name for name in now if name not in before]:
        yield f"{what} {name} is new"
