"""Checks of a prompt method: one that puts virtual tokens into a model's calls.

A plugin's test is a few lines, as for methods that adapt layers::

    from peftcore.testing import PromptMethodTests

    class TestPromptTuning(PromptMethodTests):
        method = "prompt_tuning"
        configs = ({"num_virtual_tokens": 3}, {"num_virtual_tokens": 2, "prompt_tuning_init": "SAMPLE_VOCAB"})

The checks run on tiny decoders of transformers, and through the public API alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from peftcore import PeftConfig, PeftModel, get_peft_model
from peftcore.exceptions import NotMergeableError, TaskError
from peftcore.prompts import PromptEncoder
from peftcore.registry import registry
from peftcore.testing.basis import check_overrides
from peftcore.testing.closeness import EXACT, FLOAT32, assert_close, refused
from peftcore.testing.configs import assert_equal
from peftcore.testing.models import VOCABULARY, gpt2, llama
from peftcore.testing.packaging import PackagingTests
from peftcore.testing.snapshot import Snapshot
from peftcore.testing.trials import perturb, seeded, trainable

#: Prompts of the batch on which checks run, and which of its tokens are padding; the last row has some on the left.
IDS = torch.arange(2, 17).reshape(3, 5)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

#: The models that checks run on, by name.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: llama(use_cache=True),
    "gpt2": lambda: gpt2(use_cache=True, n_positions=64),
}


def frozen(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model, the same one each time, with weights so large that errors show."""
    with seeded(0), torch.no_grad():
        model = build().eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class PromptMethodTests(PackagingTests):
    """Everything that a prompt method must keep; a subclass gives ``method`` and at least two different ``configs``."""

    #: The models to check on; those that the method can't serve are left out by the subclass.
    models: ClassVar[Mapping[str, Callable[[], nn.Module]]] = MODELS
    #: What the method has declared in ``call_arguments``, by row of the batch.
    call_arguments: ClassVar[Mapping[str, Tensor]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        nn_configs = getattr(cls, "configs", ())
        if cls.__module__.startswith("peftcore.testing."):
            return
        check_overrides(cls)
        if len(nn_configs) < 2 or any(one == two for one, two in combinations(nn_configs, 2)):
            raise TypeError(f"{cls.__name__}.configs must hold at least two different configs.")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a check that takes ``build`` and ``options`` for every model and every config."""
        if "build" in metafunc.fixturenames:
            metafunc.parametrize("build", self.models.values(), ids=list(self.models))
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", self.configs, ids=[f"config{n}" for n, _ in enumerate(self.configs)])

    # ------------------------------------------------------------------------------------ shared by the checks

    def config(self, options: Mapping[str, Any]) -> PeftConfig:
        """Make a config."""
        return registry[self.method].config_cls(**{"task_type": "CAUSAL_LM", **options})

    def adapted(
        self, build: Callable[[], nn.Module], options: Mapping[str, Any], *, perturbed: bool = True
    ) -> PeftModel:
        """Return a model with an adapter, away from its start."""
        with seeded(1):
            model = get_peft_model(frozen(build), self.config(options)).eval()
        if perturbed:
            perturb(model)
        return model

    def other(self) -> Mapping[str, Any]:
        """Return the last config's options, for a second adapter."""
        return self.configs[-1]

    def logits(
        self, model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = MASK, rows: Any = None, **more: Any
    ) -> Tensor:
        """Return the logits of the tokens, those of virtual ones left out.

        Args:
            model: The model.
            ids, mask: Its inputs.
            rows: Which rows of the batch they are; all if None.
            **more: For the call.
        """
        declared = {name: value if rows is None else value[rows] for name, value in self.call_arguments.items()}
        with torch.no_grad():
            output: Any = model(input_ids=ids, attention_mask=mask, **declared, **more)
        return output.logits[:, -ids.shape[1] :]

    def generated(self, model: Any, ids: Tensor, mask: Tensor, rows: Any = slice(None), **more: Any) -> Tensor:
        """Return what a model writes, greedily."""
        declared = {name: value[rows] for name, value in self.call_arguments.items()}
        return model.generate(input_ids=ids, attention_mask=mask, **GREEDY, **declared, **more)

    # -------------------------------------------------------------------------------------------- the method

    def test_names_are_consistent(self) -> None:
        """Method, config and encoder say what they are."""
        method = registry[self.method]
        assert method.config_cls.method == self.method
        assert isinstance(method.encoder_cls, type) and issubclass(method.encoder_cls, PromptEncoder)

    def test_config_survives_any_journey(self, options: Mapping[str, Any], tmp_path: Path) -> None:
        """Written and read, copied or pickled, a config is equal to itself."""
        config = self.config(options)
        values = json.loads(config.to_json_string())
        assert_equal(PeftConfig.from_dict(values), config, "read from JSON")
        config.save_pretrained(tmp_path)
        assert_equal(PeftConfig.from_pretrained(tmp_path), config, "read from a file")
        assert_equal(ForkingPickler.loads(ForkingPickler.dumps(config)), config, "pickled")

    # ---------------------------------------------------------------------------------------------- training

    def test_only_the_adapter_trains_and_all_of_it(self, build: Callable[[], nn.Module], options: Any) -> None:
        """Every parameter of the encoder gets a gradient, and none of the model's."""
        model = self.adapted(build, options).train()
        encoder = model.base_model.prompt_encoder
        assert encoder is not None
        own = {id(parameter) for parameter in encoder.parameters()}
        assert own == {id(parameter) for parameter in trainable(model).values()}, "Something else trains."
        output = model(input_ids=IDS, attention_mask=MASK, labels=IDS, **self.call_arguments)
        output.loss.backward()
        idle = [name for name, parameter in trainable(model).items() if parameter.grad is None]
        assert not idle, f"The loss does not depend on {', '.join(idle)}."

    def test_what_needs_arguments_says_so(self, build: Callable[[], nn.Module]) -> None:
        """Without what the method has declared, a call is refused by a named error."""
        model = self.adapted(build, self.configs[0])
        if self.call_arguments:
            with refused("A call without the declared arguments", TaskError):
                model(input_ids=IDS)

    # ----------------------------------------------------------------------------------------------- forward

    def test_each_row_is_as_if_alone(self, build: Callable[[], nn.Module], options: Any) -> None:
        """Padding and neighbours change nothing."""
        model = self.adapted(build, options)
        together = self.logits(model)
        assert not torch.allclose(together[:2], self.logits(frozen(build))[:2], atol=1e-3), "The adapter does nothing."
        for row in range(len(IDS)):
            shown = MASK[row].bool()
            alone = self.logits(model, IDS[row : row + 1, shown], MASK[row : row + 1, shown], slice(row, row + 1))
            cause = "Does what the encoder makes for a row depend on other rows?"
            assert_close(together[row : row + 1, shown], alone, f"Row {row} differs from the row alone", cause)
        right = torch.cat([IDS, IDS[:, :2]], 1)
        padded = self.logits(model, right, torch.cat([MASK, torch.zeros_like(MASK[:, :2])], 1))
        assert_close(padded[:, : IDS.shape[1]][MASK.bool()], together[MASK.bool()], "Padding on the right counts", "")

    def test_generation_is_repeated_calls(self, build: Callable[[], nn.Module], options: Any) -> None:
        """Greedy generation writes what repeated calls on longer and longer inputs would."""
        model = self.adapted(build, options)
        ids, mask = IDS, MASK
        for _ in range(GREEDY["max_new_tokens"]):
            chosen = self.logits(model, ids, mask)[:, -1:].argmax(-1)
            ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
        written = self.generated(model, IDS, MASK)
        assert torch.equal(written, ids), f"generate() wrote {written.tolist()}, repeated calls {ids.tolist()}."
        static = self.generated(model, IDS, MASK, cache_implementation="static")
        assert torch.equal(static, ids), "With a static cache, generate() writes something else."

    def test_mixed_batch_equals_row_by_row(self, build: Callable[[], nn.Module]) -> None:
        """Rows with different adapters, or with none, are as they would be alone."""
        model = self.adapted(build, self.configs[0])
        with seeded(2):
            model.add_adapter("other", self.config(self.other()))
        perturb(model, "other", seed=3)
        names = ["other", "__base__", "default"]
        together = self.logits(model, adapter_names=names)
        written = self.generated(model, IDS, MASK, adapter_names=names)
        for row, name in enumerate(names):
            one = slice(row, row + 1)
            if name == "__base__":
                with model.disable_adapter():
                    alone, text = (
                        self.logits(model, IDS[one], MASK[one], one),
                        self.generated(model, IDS[one], MASK[one], one),
                    )
            else:
                model.set_adapter(name)
                alone, text = (
                    self.logits(model, IDS[one], MASK[one], one),
                    self.generated(model, IDS[one], MASK[one], one),
                )
            shown = MASK[row].bool()
            assert_close(together[one, shown], alone[:, shown], f"Row {row} ({name}) differs from the row alone", "")
            assert torch.equal(written[one], text), f"Row {row} ({name}) is continued otherwise than alone."

    def test_disabled_is_the_frozen_model(self, build: Callable[[], nn.Module], options: Any) -> None:
        """Switched off, the adapter leaves nothing in the output."""
        model = self.adapted(build, options)
        with model.disable_adapter():
            assert_close(self.logits(model), self.logits(frozen(build)), "Disabled, the output differs", "", EXACT)

    def test_merging_is_refused(self, build: Callable[[], nn.Module]) -> None:
        """No weight can hold virtual tokens; a refused merge changes nothing."""
        model = self.adapted(build, self.configs[0])
        before = self.logits(model)
        with refused("Merging virtual tokens", NotMergeableError):
            model.merge_adapter()
        assert_close(self.logits(model), before, "After a refused merge, the output differs", "", EXACT)

    # ------------------------------------------------------------------------------------------------- files

    def test_save_and_load(self, build: Callable[[], nn.Module], options: Any, tmp_path: Path) -> None:
        """An adapter from a file acts as the one that was saved, loaded in either way."""
        model = self.adapted(build, options)
        model.save_pretrained(tmp_path)
        for low_cpu_mem_usage in (False, True):
            loaded = PeftModel.from_pretrained(frozen(build), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
            assert_close(self.logits(loaded), self.logits(model), "Loaded from its file, the output differs", "")

    def test_training_goes_on_from_a_file(self, build: Callable[[], nn.Module], options: Any, tmp_path: Path) -> None:
        """A step after saving and loading leads where the same step leads without."""
        model = self.adapted(build, options)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(frozen(build), tmp_path, is_trainable=True).eval()
        outputs = []
        for each in (model, loaded):
            optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
            each(input_ids=IDS, attention_mask=MASK, labels=IDS, **self.call_arguments).loss.backward()
            optimizer.step()
            outputs.append(self.logits(each))
        cause = "Does the file lack something that trains? See peftcore.prompts.PromptTable."
        assert_close(outputs[1], outputs[0], "After one more step, the loaded adapter's output differs", cause)

    # --------------------------------------------------------------------------------------------- lifecycle

    def test_second_adapter_is_what_it_is_alone(self, build: Callable[[], nn.Module]) -> None:
        """Adapters share nothing."""
        alone = self.adapted(build, self.other(), perturbed=False)
        model = self.adapted(build, self.configs[0])
        with seeded(1):
            model.add_adapter("other", self.config(self.other()))
        model.set_adapter("other")
        perturb(model, seed=5)
        perturb(alone, seed=5)
        assert_close(self.logits(model), self.logits(alone), "A second adapter differs from the same one alone", "")

    def test_delete_leaves_no_trace(self, build: Callable[[], nn.Module], options: Any) -> None:
        """Without adapters, the model is the frozen one again, down to its hooks."""
        user_model = frozen(build)
        before = Snapshot.of(user_model)
        model = get_peft_model(user_model, self.config(options))
        model.delete_adapter("default")
        before.assert_same(user_model, "After delete_adapter", "Is something left on the model?")
        model = get_peft_model(user_model, self.config(options))
        assert model.unload() is user_model
        before.assert_same(user_model, "After unload", "Is something left on the model?")

    def test_a_deep_copy_is_a_model_of_its_own(self, build: Callable[[], nn.Module]) -> None:
        """Copied deeply, the model answers the same, and changing the copy changes nothing here."""
        model = self.adapted(build, self.configs[0])
        before = self.logits(model)
        copied = copy.deepcopy(model)
        assert_close(self.logits(copied), before, "A deep copy's output differs", "", EXACT)
        perturb(copied, seed=7)
        assert_close(self.logits(model), before, "Changing a copy changes the model", "", EXACT)
        assert not torch.allclose(self.logits(copied), before, atol=1e-3), "The copy asks this model's encoder."

    def test_state_survives_torch_save(self, build: Callable[[], nn.Module], tmp_path: Path) -> None:
        """The whole model's state goes into another one with the same adapters."""
        model, other = self.adapted(build, self.configs[0]), self.adapted(build, self.configs[0], perturbed=False)
        torch.save(model.state_dict(), tmp_path / "state.pt")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert_close(self.logits(other), self.logits(model), "From a state dict, the output differs", "", FLOAT32)

    def test_bfloat16(self, build: Callable[[], nn.Module]) -> None:
        """On a model in bfloat16 the adapter stays in float32, and the output is finite."""
        model = get_peft_model(frozen(build).to(torch.bfloat16), self.config(self.configs[0])).eval()
        assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
        assert self.logits(model).isfinite().all()

    def test_ids_stay_within_the_vocabulary(self, build: Callable[[], nn.Module]) -> None:
        """What is written are ids of the model."""
        written = self.generated(self.adapted(build, self.configs[0]), IDS, MASK)
        assert written.shape == (3, IDS.shape[1] + GREEDY["max_new_tokens"])
        assert ((written >= 0) & (written < VOCABULARY)).all()
