"""Checks of an adapter's start and of its training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from peftcore import get_peft_model
from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.delta import WeightDelta
from peftcore.exceptions import ConfigError
from peftcore.options import INPUT_DROPOUT, option_with_role
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import assert_close, difference, refused
from peftcore.testing.snapshot import Snapshot
from peftcore.testing.trials import Case, Trial, seeded, trainable


class TrainingTests(MethodTests):
    """An adapter begins as nothing, and training it trains all of it and nothing else."""

    def test_start_is_the_frozen_model(self, case: Case) -> None:
        """A new adapter changes no output; a method that means to says so in ``no_identity_because``."""
        trial = Trial(case, perturbed=False)
        if self.no_identity_because:
            assert trial.output().isfinite().all(), "A new adapter makes the output something that is no number."
            return
        assert_close(
            trial.output(),
            trial.frozen,
            "With a new adapter, the output differs from the frozen model's",
            "Does the adapter's effect start at zero on this kind of layer? "
            "If it is meant not to, say why in `no_identity_because`.",
        )

    def test_trained_adapter_changes_the_output(self, case: Case) -> None:
        """Once its parameters have moved, an adapter shows; if not, most other checks would see nothing."""
        trial = Trial(case)
        change = difference(trial.output(), trial.frozen)
        assert change > 1e-2 * trial.frozen.abs().max().item(), (
            f"An adapter whose parameters were moved by {case.scale} changes the output by {change:.2g} only. "
            "Do all layers use their parameters? Raise `perturbation` if the method's parameters act in small units."
        )

    def test_only_the_adapter_trains(self, case: Case) -> None:
        """The frozen model's tensors need no gradient and get none."""
        trial = Trial(case)
        assert trainable(trial.model), "Nothing trains: the adapter has no parameters. Are they nn.Parameters?"
        _backward(trial)
        trained = trial.before.trained()
        assert not trained, (
            f"Tensors of the frozen model train: {', '.join(trained)}. "
            "Does the adapter hold one of the layer's own parameters instead of a detached copy?"
        )

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        """Each parameter that trains gets a gradient that is not zero."""
        trial = Trial(case)
        _backward(trial)
        grads = {name: parameter.grad for name, parameter in trainable(trial.model).items()}
        without = [name for name, grad in grads.items() if grad is None or not grad.any()]
        assert not without, (
            f"No gradient reaches {', '.join(without)}. Is it used at all, or used under no_grad or through .data? "
            "What is saved but does not train is a buffer."
        )

    def test_a_training_step_changes_the_adapter_alone(self, case: Case) -> None:
        """After a step of training from the start, the output is another, and no frozen tensor has moved."""
        trial = Trial(case, perturbed=False)
        before = trial.output()
        trial.model.train()
        optimizer = torch.optim.SGD(trainable(trial.model).values(), lr=0.5)
        with seeded(3):
            _backward(trial)
        optimizer.step()
        trial.model.eval()
        trial.before.assert_tensors_same("After a training step", "Does the adapter write to the layer's weight?")
        assert difference(trial.output(), before) > 0, (
            "A training step from the start changes nothing. Do all gradients vanish there (two factors that are zero)?"
        )

    def test_modes_follow_the_model(self, case: Case) -> None:
        """train() and eval() reach the adapter, a second one joins in the model's mode, and eval is deterministic."""
        trial = Trial(case)
        trial.add("second", perturbed=False)
        for mode in (True, False):
            trial.model.train(mode)
            wrong = [path for path, module in trial.model.named_modules() if module.training is not mode]
            assert not wrong, f"After train({mode}), these are in the other mode: {', '.join(wrong)}."
        assert_close(
            trial.output(),
            trial.output(),
            "In eval mode, two calls with one input differ",
            "Is something drawn at random outside of train mode?",
        )

    def test_adapter_added_in_eval_mode_is_in_eval_mode(self, first_case: Case) -> None:
        """An adapter put into a model that is in eval mode does not drop anything out."""
        trial = Trial(first_case, perturbed=False)
        wrong = [path for path, module in trial.user_model.named_modules() if module.training]
        assert not wrong, f"The model was in eval mode, but these are in train mode: {', '.join(wrong)}."

    def test_input_dropout_leaves_out_entries_of_the_input(self, first_case: Case) -> None:
        """An ``input_dropout_option`` drops entries of what Δ acts on; where it acts on no input, it is refused."""
        option = option_with_role(type(first_case.config()), INPUT_DROPOUT)  # type: ignore[arg-type]  # has a hash
        if option is None:
            return
        case = replace(first_case, options={**first_case.options, option: 0.5})
        if not all(layer.base.additive for layer in _layers(Trial(first_case))):
            model = case.sample.model()
            before = Snapshot.of(model)
            with refused(f"Dropout of the input on {case.sample.name}, through which no input passes,", ConfigError):
                get_peft_model(model, case.config())
            before.assert_same(model, "After dropout was refused", "Is the layer changed before it is checked?")
            return
        trial = Trial(case)
        for layer, x in _called_with(trial):
            adapter = layer.adapters["default"].train()
            assert isinstance(adapter, WeightDelta), "Only the family of deltas knows this option."
            with seeded(5):
                found = adapter.delta_forward(adapter.cast(x))
            with seeded(5):
                left = nn.functional.dropout(x, 0.5) if x.is_floating_point() else x
            expected = adapter.base.apply(adapter.canonical_delta(), left)
            cause = "Does delta_forward begin with self.entering(x), once?"
            assert_close(found, expected, "In training, Δ's effect is not that on the input after dropout", cause)


def _layers(trial: Trial) -> list[AdaptedLayer]:
    return [module for module in trial.model.modules() if isinstance(module, AdaptedLayer)]


def _called_with(trial: Trial) -> list[tuple[AdaptedLayer, Tensor]]:
    """Return each adapted layer, and what it is called with when the model is."""
    seen: list[tuple[AdaptedLayer, Tensor]] = []
    for layer in _layers(trial):
        layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0].detach())))
    trial.output()
    return seen


def _backward(trial: Trial) -> None:
    """Compute the gradients of a loss that every entry of the output bears upon, each in another way."""
    output = trial.model(trial.x)
    generator = torch.Generator().manual_seed(4)
    loss = nn.functional.mse_loss(output, torch.randn(output.shape, generator=generator))
    torch.autograd.backward(loss)
