"""Mistakes that were found in HF PEFT, and that can't happen here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import peftcore
from peftcore import LoraConfig, PeftModel
from peftcore.exceptions import AdapterNameError, CheckpointError, MixedBatchError, TargetError

from .cases import ATTENTION, CASES, GROUPED, MERGED_COUNTS, POINTWISE, TIED
from .harness import Case, answer, assert_same, perturb

# ------------------------------------------------------------------- adapter_names is honoured by every layer

ROW_BY_ROW = CASES | TIED | GROUPED | POINTWISE | MERGED_COUNTS | ATTENTION


@pytest.mark.parametrize("case", list(ROW_BY_ROW.values()), ids=list(ROW_BY_ROW))
def test_each_row_gets_its_adapter(case: Case):
    """HF PEFT ignores the names for most layers and for all but three methods."""
    model = case.ours("a", seed=0)
    model.add_adapter("b", LoraConfig(**{**case.options, "lora_alpha": 9}))
    model.set_adapter("b")
    perturb(model, seed=1)
    alone = {}
    # The frozen model first: torch's embedding with max_norm shortens its vectors for good when they are looked up.
    with model.disable_adapter():
        alone["__base__"] = case.answer(model)
    for name in ("a", "b"):
        model.set_adapter(name)
        alone[name] = case.answer(model)
    names = ["b", "__base__", "a", "b"]
    expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
    assert_same(case.answer(model, adapter_names=names), expected)


# -------------------------------------------------------------------------------- names are never looked for in keys

AWKWARD = ["0", "layers", "model", "first", "lora_A", "weight", "default ", "base_layer", "modules_to_save", "ä b"]


@pytest.mark.parametrize("name", AWKWARD)
def test_an_adapter_called_like_something_else_is_saved_whole(name, tmp_path):
    """HF PEFT finds an adapter's tensors by its name, and loses those of others that contain it."""
    case = Case("llama", target_modules=["q_proj", "up_proj"])
    model = case.ours("default", seed=0)
    model.add_adapter(name, LoraConfig(**case.options))
    model.set_adapter(name)
    perturb(model, seed=1)
    assert set(peftcore.get_peft_model_state_dict(model, adapter_name=name)) == set(
        peftcore.get_peft_model_state_dict(model, adapter_name="default")
    )
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    loaded.load_adapter(tmp_path / name, name)
    for chosen in ("default", name):
        model.set_adapter(chosen)
        loaded.set_adapter(chosen)
        assert_same(case.answer(loaded), case.answer(model))


def test_a_model_whose_modules_are_called_like_the_adapter_loses_nothing(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.default = nn.ModuleDict({"lora_A": nn.Linear(4, 4), "0": nn.Linear(4, 4)})

        def forward(self, x):
            return self.default["0"](torch.tanh(self.default["lora_A"](x)))

    torch.manual_seed(0)
    built, x = Named(), torch.randn(3, 4)
    weights = {name: value.clone() for name, value in built.state_dict().items()}
    model = peftcore.get_peft_model(built, LoraConfig(target_modules=["lora_A", "0"], r=2))
    perturb(model)
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4
    fresh = Named()
    fresh.load_state_dict(weights)
    assert_same(PeftModel.from_pretrained(fresh, tmp_path)(x), model(x))


@pytest.mark.parametrize("name", ["", "a.b", "__base__"])
def test_what_can_not_be_a_key_is_refused(name):
    case = Case("mlp", target_modules=["first"])
    built = case.build()
    before = list(built.named_modules())
    with pytest.raises(AdapterNameError):
        peftcore.get_peft_model(built, LoraConfig(**case.options), name)
    assert list(built.named_modules()) == before
    assert all(parameter.requires_grad for parameter in built.parameters())


# ------------------------------------------------------------------------------------- nothing passes in silence


def damage(directory, change) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


FIRST_A = "base_model.model.first.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(FIRST_A), "missing"),
        (lambda tensors: tensors.update({"base_model.model.third.lora_A.weight": torch.zeros(2, 2)}), "third"),
        (lambda tensors: tensors.update({FIRST_A: torch.zeros(2, 9)}), r"\[2, 9\]"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_keys_that_do_not_fit_are_errors(change, says, tmp_path):
    case = Case("mlp", target_modules=["first", "second"])
    case.theirs().save_pretrained(tmp_path)
    damage(tmp_path, change)
    built = case.build()
    modules, outputs = list(built.named_modules()), answer(built)
    with pytest.raises(CheckpointError, match=says):
        PeftModel.from_pretrained(built, tmp_path)
    assert list(built.named_modules()) == modules
    assert torch.equal(answer(built), outputs)
    assert all(parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize(
    "option", ["target_modules", "modules_to_save", "target_parameters", "trainable_token_indices"]
)
def test_what_matches_nothing_is_an_error(option):
    wrong = {"words_": [1]} if option == "trainable_token_indices" else ["secnd"]
    options = {"target_modules": ["head"], option: wrong}
    built = Case("words").build()
    modules = list(built.named_modules())
    with pytest.raises(TargetError, match=r"words_|secnd"):
        peftcore.get_peft_model(built, LoraConfig(**options))
    assert list(built.named_modules()) == modules


def test_a_file_decides_whether_a_target_was_missed(tmp_path):
    """Configs saved elsewhere list more names than one model has; what counts is that every tensor finds its place."""
    case = Case("mlp", target_modules=["first"])
    theirs = case.theirs()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "target_modules": ["first", "q_proj"]}))
    assert_same(case.answer(PeftModel.from_pretrained(case.build(), tmp_path).eval()), case.answer(theirs))


# ----------------------------------------------------------------------------- a call that failed leaves nothing


class Failing(nn.Module):
    """A model that fails in its last layer when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fail = nn.Linear(4, 4), nn.Linear(4, 4), False

    def forward(self, x):
        x = self.first(x)
        if self.fail:
            raise ArithmeticError("told to")
        return self.second(x)


def test_a_mixed_batch_that_fails_leaves_nothing_behind():
    """HF PEFT leaves its hooks, and every later call fails."""
    torch.manual_seed(0)
    model = peftcore.get_peft_model(Failing(), LoraConfig(target_modules=["first", "second"], r=2), "a")
    model.add_adapter("b", LoraConfig(target_modules=["first"], r=1))
    perturb(model)
    x = torch.randn(2, 4)
    plain, mixed = model(x), model(x, adapter_names=["a", "b"])
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    model.get_base_model().fail = True
    with pytest.raises(ArithmeticError):
        model(x, adapter_names=["b", "a"])
    model.get_base_model().fail = False
    for wrong in (["a", "b", "a"], ["a", "c"], "ab"):
        with pytest.raises(MixedBatchError):
            model(x, adapter_names=wrong)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(model(x), plain)
    assert torch.equal(model(x, adapter_names=["a", "b"]), mixed)


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_there_is_one_name_per_row(names):
    """Two names for four rows say nothing about which rows are meant; HF PEFT refuses them as well."""
    model = peftcore.get_peft_model(Failing(), LoraConfig(target_modules=["first"], r=2), "a")
    model.add_adapter("b", LoraConfig(target_modules=["first"], r=1))
    with pytest.raises(MixedBatchError, match="4 rows"):
        model(torch.randn(4, 4), adapter_names=names)


# ---------------------------------------------------------------- work does not grow with what is there already


class Counter:
    """Counts the calls of a few methods that everything on modules goes through."""

    def __init__(self, monkeypatch) -> None:
        self.calls = 0
        for owner, name in [
            (nn.Module, "__init__"),
            (nn.Module, "named_modules"),
            (nn.Module, "named_children"),
            (nn.Module, "named_parameters"),
            (nn.Module, "__setattr__"),
            (nn.Module, "_apply"),
            (nn.Parameter, "requires_grad_"),
        ]:
            self._count(monkeypatch, owner, name)

    def _count(self, monkeypatch, owner, name) -> None:
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            self.calls += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    def during(self, action) -> int:
        before = self.calls
        action()
        return self.calls - before


def deep(layers: int) -> nn.Module:
    return nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(layers)])


def adapted(layers: int, path) -> PeftModel:
    model = peftcore.get_peft_model(deep(layers), LoraConfig(target_modules=["0.0", "1.0"], r=1))
    model.save_pretrained(path)
    return model


def test_the_twentieth_load_does_what_the_second_does(monkeypatch, tmp_path):
    """HF PEFT's takes longer with each adapter that is there."""
    model = adapted(4, tmp_path)
    counter = Counter(monkeypatch)
    work = [counter.during(lambda n=n: model.load_adapter(tmp_path, f"n{n}")) for n in range(20)]
    assert work[19] == work[0] > 0


@pytest.mark.parametrize(
    "action",
    [
        lambda model: model.set_adapter("n1"),
        lambda model: peftcore.get_peft_model_state_dict(model, adapter_name="n1"),
        lambda model: model.delete_adapter("n1"),
    ],
    ids=["set_adapter", "state_dict", "delete_adapter"],
)
def test_other_work_depends_neither_on_the_model_nor_on_other_adapters(action, monkeypatch, tmp_path):
    """HF PEFT walks the whole model each time."""

    def work(layers: int, adapters: int) -> int:
        model = adapted(layers, tmp_path)
        for n in range(adapters):
            model.load_adapter(tmp_path, f"n{n}")
        with monkeypatch.context() as patch:
            return Counter(patch).during(lambda: action(model))

    assert work(4, 2) == work(40, 2) == work(4, 15)


def test_work_grows_with_the_layers_adapted_and_no_faster(monkeypatch):
    def work(layers: int) -> int:
        built, config = deep(layers), LoraConfig(target_modules=r"\d+\.[02]", r=1)
        with monkeypatch.context() as patch:
            return Counter(patch).during(lambda: peftcore.get_peft_model(built, config))

    ten, twenty, forty = work(10), work(20), work(40)
    assert forty - twenty == 2 * (twenty - ten)
