"""docs/coming-from-hf-peft.md: each row is found again by running both libraries."""

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import peftcore
from peftcore.exceptions import AdapterNameError, CheckpointError, ConfigError, TargetError
from peftcore.registry import registry

from .pages import DOCS

PAGE = (DOCS / "coming-from-hf-peft.md").read_text(encoding="utf-8")
IDS = torch.arange(12).reshape(3, 4)
TENSORS = "adapter_model.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore")

CHECKS: dict[str, Callable[..., None]] = {}


def row(topic: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter what checks the row of a topic."""

    def enter(check: Callable[..., None]) -> Callable[..., None]:
        CHECKS[topic] = check
        return check

    return enter


def rows() -> Iterator[str]:
    """Yield the topics of the page's tables."""
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("| what |"):
            yield line.split("|")[1].strip()


def test_every_row_is_checked_and_every_check_has_a_row() -> None:
    topics = list(rows())
    assert sorted(topics) == sorted(CHECKS)


@pytest.mark.parametrize("topic", list(rows()))
def test_the_row_holds(topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check = CHECKS[topic]
    check(tmp_path) if check.__code__.co_argcount else check()


# ---------------------------------------------------------------------------------------- what the checks share


def base(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, **options)).eval()


def lora(library: ModuleType, **options: Any) -> Any:
    return library.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})


def stirred(model: Any, seed: int = 0) -> Any:
    """Move what trains away from where it started."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def adapted(library: ModuleType, **options: Any) -> Any:
    return stirred(library.get_peft_model(base(), lora(library, **options)))


def logits(model: Any, **arguments: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **arguments).logits


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def saved(library: ModuleType, folder: Path, change: Callable[[dict[str, Tensor]], Any] | None = None) -> Path:
    """Save an adapter, and change the tensors in its file."""
    adapted(library).save_pretrained(folder)
    if change is not None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS, {"format": "pt"})
    return folder


def warned(action: Callable[[], Any]) -> list[str]:
    """Return what an action warns of, but for what transformers says of its own names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


# --------------------------------------------------------------------------------------------------- the same


@row("names")
def _() -> None:
    (line,) = re.findall(r"(?m)^\| names \|(.*)$", PAGE)
    for name in re.findall(r"`([\w.]+)`", line):
        name = name.removeprefix("PeftModel.")
        for library in (peft, peftcore):
            holders = (library, library.PeftModel, library.get_peft_model(base(), lora(library)))
            assert any(hasattr(holder, name) for holder in holders), name


@row("configs")
def _() -> None:
    shared = 0
    for name in registry.catalog.names():
        ours = registry[name].config_cls
        theirs = getattr(peft, ours.__name__, None)
        if theirs is None:
            continue
        shared += 1
        there = {field.name: field for field in dataclasses.fields(theirs)}
        for field in dataclasses.fields(ours):
            if field.name in there and field.name != "peft_type" and field.default is not dataclasses.MISSING:
                assert there[field.name].default == field.default, (ours, field.name)
    assert shared > 30


@row("files")
def _(folder: Path) -> None:
    for writer, reader in ((peft, peftcore), (peftcore, peft)):
        model = adapted(writer)
        model.save_pretrained(folder / writer.__name__)
        assert same(logits(reader.PeftModel.from_pretrained(base(), folder / writer.__name__).eval()), logits(model))


@row("`task_type`")
def _() -> None:
    assert {str(task.value) for task in peft.TaskType} == {task.value for task in peftcore.TaskType}
    kinds = [name for name in dir(peft) if re.match(r"(Auto)?PeftModelFor", name)]
    assert len(kinds) == 12 and [name for name in kinds if not hasattr(peftcore, name)] == []


@row("your model")
def _() -> None:
    for library in (peft, peftcore):
        mine = base()
        model = library.get_peft_model(mine, lora(library))
        assert model.base_model.model is mine and model.config is mine.config
        assert hasattr(mine.model.layers[0].self_attn.q_proj, "base_layer")


@row("a layer")
def _() -> None:
    for library in (peft, peftcore):
        layer = adapted(library).base_model.model.model.layers[0].self_attn.q_proj
        assert isinstance(layer.base_layer, nn.Linear) and layer.scaling["default"] == 2.0
        assert layer.lora_A["default"].weight.shape == (4, 32) and layer.active_adapters == ["default"]


@row("targets")
def _() -> None:
    for wanted in (["q_proj"], ["self_attn.v_proj"], r".*layers\.1.*_proj", "all-linear", None):
        numbers = {
            library.get_peft_model(base(), lora(library, target_modules=wanted)).get_nb_trainable_parameters()
            for library in (peft, peftcore)
        }
        assert len(numbers) == 1, wanted


@row("dtype")
def _() -> None:
    for library in (peft, peftcore):
        for kept, dtype in ((True, torch.float32), (False, torch.bfloat16)):
            model = library.get_peft_model(base().bfloat16(), lora(library), autocast_adapter_dtype=kept)
            assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}


@row("what prints")
def _() -> None:
    printed = []
    for library in (peft, peftcore):
        text, model = io.StringIO(), adapted(library)
        with contextlib.redirect_stdout(text):
            model.print_trainable_parameters()
        status = model.get_model_status()
        printed.append(
            (text.getvalue(), status.trainable_params, status.active_adapters, len(model.get_layer_status()))
        )
    assert printed[0] == printed[1]


# ----------------------------------------------------------------------------------------------------- better


@row("a tensor is missing from a file")
def _(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    saved(peft, folder, lambda tensors: tensors.pop(name))
    (warning,) = warned(lambda: peft.PeftModel.from_pretrained(base(), folder))
    assert "missing" in warning
    mine = base()
    before = list(mine.state_dict())
    with pytest.raises(CheckpointError, match=name):
        peftcore.PeftModel.from_pretrained(mine, folder)
    assert list(mine.state_dict()) == before


@row("a file has a tensor too many")
def _(folder: Path) -> None:
    name = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    saved(peft, folder, lambda tensors: tensors.update({name: torch.zeros(4, 32)}))
    assert warned(lambda: peft.PeftModel.from_pretrained(base(), folder)) == []
    with pytest.raises(CheckpointError, match=name):
        peftcore.PeftModel.from_pretrained(base(), folder)


@row("one of several targets is misspelt")
def _() -> None:
    wrong, right = ["q_proj", "v_porj"], ["q_proj"]
    found = []
    assert warned(lambda: found.append(peft.get_peft_model(base(), lora(peft, target_modules=wrong)))) == []
    alone = peft.get_peft_model(base(), lora(peft, target_modules=right))
    assert found[0].get_nb_trainable_parameters() == alone.get_nb_trainable_parameters()
    with pytest.raises(TargetError, match="nearest names are: v_proj"):
        peftcore.get_peft_model(base(), lora(peftcore, target_modules=wrong))


@row("`modules_to_save` is misspelt")
def _() -> None:
    found = []
    assert warned(lambda: found.append(peft.get_peft_model(base(), lora(peft, modules_to_save=["lm_haed"])))) == []
    plain = peft.get_peft_model(base(), lora(peft))
    assert found[0].get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()
    with pytest.raises(TargetError, match="Did you mean lm_head"):
        peftcore.get_peft_model(base(), lora(peftcore, modules_to_save=["lm_haed"]))


@row('an adapter is called like a module (`"layers"`)')
def _(folder: Path) -> None:
    kept = {}
    for library in (peft, peftcore):
        model = adapted(library)
        model.add_adapter("layers", lora(library))
        model.save_pretrained(folder / library.__name__)
        kept[library] = len(load_file(folder / library.__name__ / TENSORS))
    assert kept == {peft: 0, peftcore: 8}
    with pytest.raises(AdapterNameError):
        peftcore.get_peft_model(base(), lora(peftcore), "a.b")


def _mixed(library: ModuleType, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of the adapter, of the frozen model, and of a batch whose second row asks for none."""
    model = stirred(library.get_peft_model(base(), config))
    return logits(model), logits(base()), logits(model, adapter_names=["default", "__base__", "default"])


@row("`adapter_names=` with IA3, or most other methods")
def _() -> None:
    for name, options in (("IA3Config", {"feedforward_modules": []}), ("VeraConfig", {"r": 8}), ("HRAConfig", {})):
        options = {"target_modules": ["q_proj"], **options}
        alone, _, mixed = _mixed(peft, getattr(peft, name)(**options))
        assert same(mixed, alone)
        alone, frozen, mixed = _mixed(peftcore, getattr(peftcore, name)(**options))
        assert same(mixed[[0, 2]], alone[[0, 2]]) and same(mixed[1], frozen[1]) and not same(mixed[1], alone[1])


@row("`adapter_names=` in training")
def _() -> None:
    names = ["default", "__base__", "default"]
    with pytest.raises(ValueError, match="training mode"):
        adapted(peft).train()(input_ids=IDS, adapter_names=names)
    model = adapted(peftcore).train()
    model(input_ids=IDS, labels=IDS, adapter_names=names).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@row("several adapters active")
def _() -> None:
    for library in (peft, peftcore):
        model = adapted(library)
        model.add_adapter("b", lora(library))
        if library is peft:
            with pytest.raises(TypeError):
                model.set_adapter(["default", "b"])
        (model.base_model if library is peft else model).set_adapter(["default", "b"])
        assert model.active_adapters == ["default", "b"]


@row("two active OFT or C3A adapters")
def _() -> None:
    for name, options in (("OFTConfig", {"oft_block_size": 8}), ("C3AConfig", {"block_size": 8})):
        for library in (peft, peftcore):
            config = getattr(library, name)(target_modules=["q_proj"], **options)
            model = library.get_peft_model(base(), config, "one")
            model.add_adapter("two", config)
            model.base_model.set_adapter(["one", "two"])
            expected = logits(stirred(model))
            assert same(logits(model.merge_and_unload()), expected) == (library is peftcore)


@row("different methods in one model")
def _(folder: Path) -> None:
    def both(library: ModuleType, **options: Any) -> Any:
        model = library.get_peft_model(base(), lora(library), **options)
        model.add_adapter("other", library.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
        model.set_adapter(["default", "other"])
        return model

    for options in ({}, {"mixed": True}):
        with pytest.raises(ValueError, match="peft"):
            both(peft, **options)
    with pytest.raises(ValueError, match="not compatible") as refused:
        both(peft, mixed=True)
    assert str(refused.value).count("<PeftType.") == 6
    with pytest.raises(NotImplementedError):
        peft.get_peft_model(base(), lora(peft), mixed=True).save_pretrained(folder)
    both(peftcore).save_pretrained(folder)
    assert (folder / TENSORS).exists() and (folder / "other" / TENSORS).exists()


def _prefix(library: ModuleType, **options: Any) -> Any:
    return library.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **options)


@row("a prompt method beside LoRA")
def _() -> None:
    with pytest.raises(ValueError, match="Cannot combine"):
        adapted(peft, task_type="CAUSAL_LM").add_adapter("prefix", _prefix(peft))
    model = adapted(peftcore, task_type="CAUSAL_LM")
    alone = logits(model)
    model.add_adapter("prefix", _prefix(peftcore))
    model.set_adapter(["default", "prefix"])
    assert not same(logits(model), alone)


@row("padding on the left with a prompt method")
def _() -> None:
    for library in (peft, peftcore):
        config = library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = stirred(library.get_peft_model(base(), config))
        ids, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 0, 5, 6, 7]])
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        behind = model(input_ids=padded, attention_mask=(padded > 0).long()).logits[0, -1]
        assert same(plain, behind) == (library is peftcore)


@row("training on from a saved prefix")
def _(folder: Path) -> None:
    for library in (peft, peftcore):
        model = stirred(library.get_peft_model(base(), _prefix(library, prefix_projection=True, encoder_hidden_size=8)))
        model.save_pretrained(folder / library.__name__)
        if library is peft:
            with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
                peft.PeftModel.from_pretrained(base(), folder / "peft", is_trainable=True)
        else:
            loaded = peftcore.PeftModel.from_pretrained(base(), folder / "peftcore", is_trainable=True)
            assert loaded.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
            assert same(logits(loaded), logits(model))


@row('a second adapter with `bias="all"`')
def _() -> None:
    for library in (peft, peftcore):
        model = library.get_peft_model(nn.Sequential(nn.Linear(4, 4)), lora(library, target_modules=["0"], bias="all"))
        again = lora(library, target_modules=["0"], bias="all")
        if library is peft:
            with pytest.raises(ValueError, match="bias"):
                model.add_adapter("other", again)
        else:
            model.add_adapter("other", again)
            assert len({parameter.data_ptr() for parameter in model.base_model.tuner("other").parameters()}) == 3


@row('switching off an adapter with `bias="all"`')
def _() -> None:
    for library in (peft, peftcore):
        torch.manual_seed(0)
        plain, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
        frozen = plain(x)
        model = stirred(library.get_peft_model(plain, lora(library, target_modules=["0"], bias="all")))
        with model.disable_adapter():
            assert same(model(x), frozen) == (library is peftcore)


@row("adapting a model for a second time")
def _() -> None:
    once = adapted(peft)
    found = []
    assert warned(lambda: found.append(peft.get_peft_model(once, lora(peft))))
    assert isinstance(found[0].base_model.model, peft.PeftModel)
    with pytest.raises(TypeError, match=r"add_adapter\(\) or load_adapter\(\)"):
        peftcore.get_peft_model(adapted(peftcore), lora(peftcore))


def imported(code: str, *modules: str) -> list[str]:
    script = f"import sys\n{code}\nprint(*[name for name in {modules!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True)
    return done.stdout.split()


@row("imports")
def _() -> None:
    assert imported("import peft", "transformers") == ["transformers"]
    ours = ("transformers", "peftcore_lora", "peftcore_ia3")
    assert imported("import peftcore; peftcore.get_peft_model", *ours) == []
    assert imported("import peftcore; peftcore.LoraConfig(r=2)", *ours) == ["peftcore_lora"]


@row("speed")
def _() -> None:
    assert "peftcore / HF PEFT" in (DOCS / "benchmarks.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------- different


@row("installation")
def _() -> None:
    assert peft.LoraConfig.__module__.split(".")[0] == peft.VeraConfig.__module__.split(".")[0] == "peft"
    assert peftcore.LoraConfig.__module__.split(".")[0] == "peftcore_lora"
    assert peftcore.VeraConfig.__module__.split(".")[0] == "peftcore_vera"


@row("configs' arguments")
def _() -> None:
    peft.LoraConfig(None)
    with pytest.raises(TypeError, match="positional"):
        peftcore.LoraConfig(None)


@row("options that a file has and the library does not know")
def _(folder: Path) -> None:
    saved(peft, folder)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "never_heard_of": None}))
    peftcore.PeftModel.from_pretrained(base(), folder)
    path.write_text(json.dumps({**values, "never_heard_of": 4}))
    (warning,) = warned(lambda: peft.PeftModel.from_pretrained(base(), folder))
    assert "never_heard_of" in warning
    with pytest.raises(ConfigError, match="never_heard_of=4"):
        peftcore.PeftModel.from_pretrained(base(), folder)


@row("live parameters")
def _() -> None:
    for library, end in ((peft, ".lora_A.default.weight"), (peftcore, ".adapters.default.lora_A.weight")):
        names = [name for name, parameter in adapted(library).named_parameters() if parameter.requires_grad]
        assert names[0].endswith(end)


@row("layers' classes")
def _() -> None:
    layers = [adapted(library).base_model.model.model.layers[0].self_attn.q_proj for library in (peft, peftcore)]
    assert "lora" in type(layers[0]).__module__
    assert type(layers[1]).__name__ == "AdaptedLayer" and "lora_A.weight" in layers[1].adapters["default"].state_dict()


@row("mode after loading")
def _(folder: Path) -> None:
    saved(peft, folder)
    for library in (peft, peftcore):
        training = library.PeftModel.from_pretrained(base().train(), folder)
        assert training.training == (library is peftcore)
    assert peft.PeftModel.from_pretrained(base().train(), folder, is_trainable=True).training


@row("mode after adapting")
def _() -> None:
    for library in (peft, peftcore):
        assert library.get_peft_model(base().eval(), lora(library)).training == (library is peft)


@row("a method's name instead of a config")
def _() -> None:
    with pytest.raises(TypeError):
        peft.get_peft_model(base(), "lora", r=4)
    assert peftcore.get_peft_model(base(), "lora", r=4).peft_config["default"].r == 4


@row("wildcards in `target_modules`")
def _() -> None:
    wanted = ["*.layers.[01].*.q_proj"]
    with pytest.raises(ValueError, match="not found"):
        peft.get_peft_model(base(), lora(peft, target_modules=wanted))
    assert len(peftcore.get_peft_model(base(), lora(peftcore, target_modules=wanted)).get_layer_status()) == 2


@row("whole embeddings in files")
def _(folder: Path) -> None:
    for library in (peft, peftcore):
        adapted(library, target_modules=["embed_tokens"]).save_pretrained(folder / library.__name__)
        whole = [name for name in load_file(folder / library.__name__ / TENSORS) if "lora" not in name]
        assert bool(whole) == (library is peft)
    with pytest.raises(TypeError, match="save_embedding_layers"):
        adapted(peftcore).save_pretrained(folder, save_embedding_layers=True)
    peftcore.get_peft_model(base(), lora(peftcore, modules_to_save=["embed_tokens"])).save_pretrained(folder / "whole")
    assert "base_model.model.model.embed_tokens.weight" in load_file(folder / "whole" / TENSORS)


@row("model cards")
def _(folder: Path) -> None:
    for library in (peft, peftcore):
        adapted(library).save_pretrained(folder / library.__name__)
        assert (folder / library.__name__ / "README.md").exists() == (library is peft)


@row("errors")
def _() -> None:
    from peftcore import exceptions

    classes = [value for value in vars(exceptions).values() if isinstance(value, type) and value.__base__ is not object]
    ours = [cls for cls in classes if cls is not exceptions.PeftCoreError and issubclass(cls, exceptions.PeftCoreError)]
    assert sum(issubclass(cls, ValueError) for cls in ours) > len(ours) / 2
    with pytest.raises(ValueError) as theirs:
        peft.get_peft_model(base(), lora(peft, r=0))
    assert theirs.type is ValueError
    with pytest.raises(ConfigError):
        lora(peftcore, r=0)


@row("transformers' `Trainer`")
def _(folder: Path) -> None:
    held = {}
    for library in (peft, peftcore):
        arguments = transformers.TrainingArguments(
            str(folder / library.__name__), max_steps=1, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
        )
        rows = [{"input_ids": IDS[0], "labels": IDS[0]}]
        model = library.get_peft_model(base(), lora(library, task_type="CAUSAL_LM"))
        transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
        held[library] = {path.name for path in (folder / library.__name__ / "checkpoint-1").glob("*.safetensors")}
    assert held == {peft: {TENSORS}, peftcore: {"model.safetensors"}}


# ----------------------------------------------------------------------------------------------- not here yet


def test_what_the_page_says_to_be_missing_is() -> None:
    (section,) = re.findall(r"(?ms)^## Not here yet\n(.*)", PAGE)
    first, second = re.findall(r"(?m)^(?:This version has no|Its LoRA has none).*$", section)
    for name in re.findall(r"`(\w+)`", first):
        assert hasattr(peft, name) or hasattr(peft.PeftModel, name) or hasattr(peft.LoraModel, name) or hotswap(name)
        assert not hasattr(peftcore.PeftModel, name) and not hasattr(peftcore.public, name)
    theirs = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    ours = {field.name for field in dataclasses.fields(peftcore.LoraConfig)}
    assert set(re.findall(r"`(\w+)`", second)) <= theirs - ours


def hotswap(name: str) -> bool:
    from peft.utils import hotswap

    return hasattr(hotswap, name)
