"""Checks of what an adapter's file holds, and of the way back."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import EXACT, assert_close, refused
from peftcore.testing.trials import Case, Trial, seeded

_LOST = (
    "Does the adapter hold something that its state_dict does not? Save it as a buffer, or derive it from the config."
)


class FileTests(MethodTests):
    """A file holds the whole adapter and nothing else, whatever the adapter is called."""

    def test_save_and_load(self, case: Case, tmp_path: Path) -> None:
        """Saved and loaded into a fresh model, an adapter gives the same output."""
        trial = Trial(case)
        trial.model.save_pretrained(tmp_path)
        with seeded(9):
            loaded = PeftModel.from_pretrained(case.sample.model(), tmp_path)
        with torch.no_grad():
            assert_close(loaded(trial.x), trial.output(), "Loaded from its file, the adapter's output differs", _LOST)

    def test_load_into_a_meta_adapter(self, case: Case, tmp_path: Path) -> None:
        """With ``low_cpu_mem_usage=True`` the same, and nothing is left on the meta device."""
        trial = Trial(case)
        trial.model.save_pretrained(tmp_path)
        with seeded(9):
            loaded = PeftModel.from_pretrained(case.sample.model(), tmp_path, low_cpu_mem_usage=True)
        tensors = [*loaded.named_parameters(), *loaded.named_buffers()]
        meta = [name for name, tensor in tensors if tensor.is_meta]
        assert not meta, (
            f"Still on the meta device, without values: {', '.join(meta)}. "
            "Save them, or make what no file holds on the layer's device (device=base.device)."
        )
        with torch.no_grad():
            assert_close(loaded(trial.x), trial.output(), "Loaded by way of the meta device, the output differs", _LOST)

    def test_meta_adapter_takes_a_state(self, case: Case) -> None:
        """An adapter made on the meta device works once it is given its tensors."""
        trial = Trial(case)
        made = get_peft_model(case.sample.model(), case.config(), low_cpu_mem_usage=True)
        set_peft_model_state_dict(made, get_peft_model_state_dict(trial.model), low_cpu_mem_usage=True)
        with torch.no_grad():
            assert_close(made(trial.x), trial.output(), "Given another adapter's state, the output differs", _LOST)

    def test_state_survives_torch_save(self, case: Case) -> None:
        """The state goes through ``torch.save`` and back as plain tensors."""
        trial = Trial(case)
        stream = io.BytesIO()
        torch.save(get_peft_model_state_dict(trial.model), stream)
        stream.seek(0)
        state = torch.load(stream, weights_only=True)
        fresh = Trial(case, perturbed=False, seed=9)
        set_peft_model_state_dict(fresh.model, state)
        assert_close(fresh.output(), trial.output(), "After torch.save and torch.load, the output differs", _LOST)

    def test_missing_or_unexpected_tensors_are_refused(self, case: Case) -> None:
        """A state that lacks a tensor, or has one too many, changes nothing."""
        trial = Trial(case)
        before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(trial.model).items()}
        other = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        first = next(iter(other))
        lacking = {name: tensor for name, tensor in other.items() if name != first}
        for what, wrong in (("lacks", lacking), ("has more than", {**other, f"{first}.extra": torch.zeros(1)})):
            with refused(f"A state that {what} the adapter's tensors", CheckpointError):
                set_peft_model_state_dict(trial.model, wrong)
        after = get_peft_model_state_dict(trial.model)
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        assert not changed, f"A state that was refused has changed {', '.join(changed)}."

    def test_file_holds_the_adapter_alone(self, case: Case) -> None:
        """Every name has the method's prefix and not the adapter's name; no tensor is one of the frozen model's."""
        trial = Trial(case, "zebra")
        state = get_peft_model_state_dict(trial.model, adapter_name="zebra")
        assert state, "The file would be empty: the adapter has no parameters and no buffers."
        prefix = self.peft_method().prefix
        without = [name for name in state if prefix not in name]
        assert not without, f"Without the method's prefix {prefix!r}: {', '.join(without)}. Rename the parameters."
        named = [name for name in state if "zebra" in name]
        assert not named, f"Names that hold the adapter's name: {', '.join(named)}."
        frozen = {name: held.values for name, held in trial.before.tensors.items()}
        copies = [f"{name} (the model's {of})" for name, tensor in state.items() if (of := _copy_among(tensor, frozen))]
        assert not copies, (
            f"The file would hold weights of the frozen model: {', '.join(copies)}. "
            "Read them from the base layer, or register the buffer with persistent=False."
        )

    def test_adapters_may_be_called_like_modules(self, first_case: Case, tmp_path: Path) -> None:
        """An adapter that is called like a module, a parameter or an index is saved and loaded like any other."""
        names = list(get_peft_model_state_dict(Trial(first_case.flipped()).model))
        own = {part for name in names for part in name.split(".")}
        for name in sorted({"0", "weight", "layers", "base_layer", "adapters", *own}):
            trial = Trial(first_case, "0" if name != "0" else "1")
            trial.add(name)
            expected = trial.output(name)
            saved = list(get_peft_model_state_dict(trial.model, adapter_name=name))
            assert saved == names, f"Called {name!r}, an adapter's file has other names: {saved} instead of {names}."
            trial.model.save_pretrained(tmp_path, selected_adapters=[name])
            directory = tmp_path if name == "default" else tmp_path / name
            loaded = PeftModel.from_pretrained(first_case.sample.model(), directory, name)
            with torch.no_grad():
                assert_close(loaded(trial.x), expected, f"Called {name!r} and loaded again, the adapter differs", _LOST)

    def test_saving_changes_nothing(self, case: Case, tmp_path: Path) -> None:
        """After it is saved, the adapter gives what it gave."""
        trial = Trial(case)
        expected = trial.output()
        trial.model.save_pretrained(tmp_path)
        assert_close(trial.output(), expected, "After save_pretrained(), the output differs", "", EXACT)


def _copy_among(tensor: Tensor, others: dict[str, Tensor]) -> str | None:
    """Return the name of a tensor that is this one over again; numbers so few that they may agree don't count."""
    if tensor.numel() < 4:
        return None
    for name, other in others.items():
        if other.shape == tensor.shape and torch.equal(other, tensor.to(other.dtype)):
            return name
    return None
