"""Adapter directories: whole or not at all, strict, and never more than data."""

from __future__ import annotations

import json
import os
import pickle
import resource
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import peftcore
from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.config import LayerConfig, PeftConfig, option
from peftcore.exceptions import (
    AdapterNameError,
    CheckpointError,
    ConfigError,
    MergeError,
    PeftCoreError,
    UnknownMethodError,
)

CONFIG_NAME = "adapter_config.json"
SAFETENSORS_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"
BIN_NAME = "adapter_model.bin"


class CheckpointTestConfig(LayerConfig, method="checkpoint_test"):
    r: int = option(2, "The rank.", at_least=1)


class CheckpointTestAdapter(WeightDelta):
    """Two factors and a fixed tensor that files hold as well."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        rows, columns = base.matrix_shape
        self.low = nn.Parameter(torch.randn(config.r, columns))
        self.high = nn.Parameter(torch.randn(rows, config.r))
        self.register_buffer("fixed", torch.randn(config.r))

    def delta_weight(self):
        return self.high @ (self.fixed[:, None] * self.low)


@pytest.fixture(autouse=True, scope="module")
def method():
    peftcore.register_peft_method(
        name="checkpoint_test", config_cls=CheckpointTestConfig, adapter_cls=CheckpointTestAdapter
    )
    yield
    peftcore.unregister_peft_method("checkpoint_test")


class Net(nn.Module):
    """Has the same weights each time; the adapters put into it do not."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(4, 6)
            self.second = nn.Linear(6, 5)
            self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


def config(**options) -> CheckpointTestConfig:
    return CheckpointTestConfig(**{"target_modules": ["first", "second"], "modules_to_save": ["head"], **options})


@pytest.fixture
def saved(tmp_path) -> Path:
    """A directory with an adapter."""
    directory = tmp_path / "adapter"
    get_peft_model(Net(), config()).save_pretrained(directory)
    return directory


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def state_of(model: nn.Module) -> tuple:
    """Everything of a model that an error must leave as it was."""
    return (
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone().tolist()) for name, p in model.named_parameters()],
        sorted(model.__dict__),
        output(model).tolist(),
    )


def assert_refused(action, model: nn.Module, directory: Path, error=CheckpointError, match: str = "") -> str:
    before, files = state_of(model), contents(directory)
    with pytest.raises(error, match=match) as caught:
        action()
    assert isinstance(caught.value, PeftCoreError)
    assert state_of(model) == before
    assert contents(directory) == files
    return str(caught.value)


def edit(directory: Path, change) -> None:
    tensors = load_file(directory / SAFETENSORS_NAME)
    change(tensors)
    save_file(tensors, directory / SAFETENSORS_NAME, {"format": "pt"})


LOW = "base_model.model.first.low"

# ------------------------------------------------------------------------------------------------ what is written


def test_what_was_saved_comes_back(tmp_path):
    model = get_peft_model(Net(), config())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net(), tmp_path)
    assert torch.equal(output(loaded), output(model))


def test_names_follow_from_the_structure(saved):
    layers = ("low", "high", "fixed")
    assert set(load_file(saved / SAFETENSORS_NAME)) == {
        *(f"base_model.model.{layer}.{name}" for layer in ("first", "second") for name in layers),
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    }


def test_the_head_of_the_file_says_who_wrote_it(saved):
    with safe_open(saved / SAFETENSORS_NAME, framework="pt") as file:
        head = file.metadata()
    assert head["format"] == "pt"
    assert head["peftcore_version"] == peftcore.__version__
    assert head["peftcore_method"] == "checkpoint_test"


def test_no_other_files_are_left(saved):
    assert set(contents(saved)) == {CONFIG_NAME, SAFETENSORS_NAME}


def test_files_can_be_read_by_others(saved):
    umask = os.umask(0)
    os.umask(umask)
    for name in (CONFIG_NAME, SAFETENSORS_NAME):
        assert stat.S_IMODE((saved / name).stat().st_mode) == 0o666 & ~umask


def test_one_tensor_under_two_names_is_written_twice(tmp_path):
    model = get_peft_model(Net(), config(target_modules=["first"]))
    part = model.base_model.model.first.adapters["default"]
    part.low.data = part.high.data[:2, :2].t().repeat(1, 2)
    part.fixed = part.low.data[0, :2]
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(Net(), tmp_path)), output(model))


def test_named_adapters_have_folders_of_their_own(tmp_path):
    model = get_peft_model(Net(), config())
    model.add_adapter("other", config(r=3, target_modules=["first"]))
    model.save_pretrained(tmp_path)
    assert set(contents(tmp_path)) == {
        CONFIG_NAME,
        SAFETENSORS_NAME,
        f"other/{CONFIG_NAME}",
        f"other/{SAFETENSORS_NAME}",
    }
    loaded = PeftModel.from_pretrained(Net(), tmp_path)
    loaded.load_adapter(tmp_path, "again", subfolder="other")
    loaded.set_adapter("again")
    model.set_adapter("other")
    assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize("name", ["/elsewhere", "a/b", "a\\b", "a\0b"], ids=repr)
def test_a_name_that_is_no_folder_of_its_own_is_refused(name, tmp_path):
    """An absolute path as a name would make a save write anywhere."""
    model = get_peft_model(Net(), config())
    assert_refused(lambda: model.add_adapter(name, config()), model, tmp_path, AdapterNameError)


def test_saving_what_is_not_there_writes_nothing(tmp_path):
    model = get_peft_model(Net(), config())
    target = tmp_path / "new"
    with pytest.raises(AdapterNameError, match="other"):
        model.save_pretrained(target, selected_adapters=["default", "other"])
    assert not target.exists()


def test_only_the_main_process_writes(tmp_path):
    get_peft_model(Net(), config()).save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ other forms


@pytest.mark.parametrize("size", [1, 100, 200, 10**6])
def test_shards_hold_the_whole(size, tmp_path):
    model = get_peft_model(Net(), config())
    model.save_pretrained(tmp_path, max_shard_size=size)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 or size >= 10**6
    for shard in shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(t.numel() * t.element_size() for t in tensors.values()) <= size
    assert torch.equal(output(PeftModel.from_pretrained(Net(), tmp_path)), output(model))
    if len(shards) > 1:
        index = json.loads((tmp_path / INDEX_NAME).read_text())
        assert set(index["weight_map"].values()) == {shard.name for shard in shards}
        assert index["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in get_peft_model_state_dict(model).values()
        )


def test_a_pickle_comes_back(tmp_path):
    model = get_peft_model(Net(), config())
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert set(contents(tmp_path)) == {CONFIG_NAME, BIN_NAME}
    assert torch.equal(output(PeftModel.from_pretrained(Net(), tmp_path)), output(model))


@pytest.mark.parametrize("first", [{"max_shard_size": 100}, {"safe_serialization": False}, {}], ids=str)
@pytest.mark.parametrize("second", [{"max_shard_size": 150}, {"safe_serialization": False}, {}], ids=str)
def test_the_last_save_counts_whatever_was_there(first, second, tmp_path):
    get_peft_model(Net(), config()).save_pretrained(tmp_path, **first)
    model = get_peft_model(Net(), config())
    model.save_pretrained(tmp_path, **second)
    assert torch.equal(output(PeftModel.from_pretrained(Net(), tmp_path)), output(model))


def test_safetensors_come_before_pickles(saved):
    torch.save({"nonsense": torch.zeros(1)}, saved / BIN_NAME)
    PeftModel.from_pretrained(Net(), saved)


def test_names_from_an_older_model_are_mapped(saved):
    expected = output(PeftModel.from_pretrained(Net(), saved))
    edit(saved, lambda t: t.update({k.replace(".first.", ".old_first."): t.pop(k) for k in list(t)}))
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved, match="old_first")
    mapped = PeftModel.from_pretrained(model, saved, key_mapping={r"^old_(\w+)\.": r"\1."})
    assert torch.equal(output(mapped), expected)


def test_low_cpu_mem_usage_takes_the_tensors_of_the_file(saved):
    plain = PeftModel.from_pretrained(Net(), saved)
    loaded = PeftModel.from_pretrained(Net(), saved, low_cpu_mem_usage=True)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert torch.equal(output(loaded), output(plain))


@pytest.mark.parametrize(
    "change", [lambda t: t.pop(LOW), lambda t: t.update({LOW: torch.zeros(9, 9)})], ids=["missing", "misshapen"]
)
def test_what_the_file_lacks_is_never_left_on_the_meta_device(change, saved):
    edit(saved, change)
    model = get_peft_model(Net(), config(r=1), "other")
    assert_refused(
        lambda: model.load_adapter(saved, "default", strict=False, low_cpu_mem_usage=True), model, saved, match=LOW
    )


def test_a_merged_adapter_is_written_as_it_is(saved, tmp_path):
    model = PeftModel.from_pretrained(Net(), saved)
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    before, after = load_file(saved / SAFETENSORS_NAME), load_file(tmp_path / "merged" / SAFETENSORS_NAME)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_set_while_merged_do_not_stay_in_the_frozen_weight(saved):
    """What is taken out again must be what was put in."""
    frozen = output(Net())
    model = get_peft_model(Net(), config(modules_to_save=None))
    state = {name: value + 1 for name, value in get_peft_model_state_dict(model).items()}
    model.merge_adapter()
    with pytest.raises(MergeError, match="unmerge_adapter"):
        set_peft_model_state_dict(model, state)
    model.unmerge_adapter()
    set_peft_model_state_dict(model, state)
    with model.disable_adapter():
        torch.testing.assert_close(output(model), frozen)


# ------------------------------------------------------------------------- values from elsewhere, gathered say


class HalvedTestConfig(LayerConfig, method="halved_test"):
    broken: bool = option(False, "Whether it can't be saved.")


class HalvedTestAdapter(WeightDelta):
    """What files hold is computed when it is asked for: the positive part, and where it is."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.config = config
        self.delta = nn.Parameter(torch.randn(base.weight_shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def delta_weight(self):
        return self.delta

    def saved_module(self):
        if self.config.broken:
            raise RuntimeError("broken")
        saved = nn.Module()
        saved.positive = nn.Parameter(self.delta.detach().relu())
        saved.register_buffer("where", self.delta.detach() > 0)
        return saved


@pytest.fixture
def halved():
    peftcore.register_peft_method(name="halved_test", config_cls=HalvedTestConfig, adapter_cls=HalvedTestAdapter)
    yield lambda **options: get_peft_model(
        Net(), HalvedTestConfig(target_modules=["first", "second"], modules_to_save=["head"], **options)
    )
    peftcore.unregister_peft_method("halved_test")


def own_tensors(model):
    return [(id(p), p.requires_grad, p.clone()) for p in model.parameters()], [id(b) for b in model.buffers()]


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda t: -2 * t, lambda t: t),
        (lambda t: (-2 * t).double(), lambda t: t.float()),
        (lambda t: (-2 * t).bfloat16(), None),
        (lambda t: t.to("meta"), None),
    ],
    ids=["values", "finer", "coarser", "elsewhere"],
)
def test_tensors_that_files_hold_are_computed_from_a_state_dict_too(change, back, halved):
    model, other = halved(), halved()
    given = {name: change(t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    before = own_tensors(model)
    taken = get_peft_model_state_dict(model, state_dict=given)
    torch.testing.assert_close(own_tensors(model), before, atol=0, rtol=0)
    assert taken.keys() == get_peft_model_state_dict(model).keys()
    sample = next(t for t in given.values() if t.is_floating_point())
    assert all(t.device == sample.device and t.dtype in (sample.dtype, torch.bool) for t in taken.values())
    assert not any(t.requires_grad for t in taken.values())
    if back is not None:
        other.load_state_dict({name: back(t) for name, t in given.items()})
        expected = get_peft_model_state_dict(other)
        assert all(
            torch.equal(back(taken[key]) if taken[key].dtype != torch.bool else taken[key], expected[key])
            for key in expected
        )


def test_what_a_state_dict_lacks_is_named(halved):
    model = halved()
    before, given = own_tensors(model), model.state_dict()
    lacking = {name: t for name, t in given.items() if not name.endswith(".delta")}
    with pytest.raises(CheckpointError, match=r"lacks .*first\.adapters\.default\.delta and 1 more"):
        get_peft_model_state_dict(model, state_dict=lacking)
    torch.testing.assert_close(own_tensors(model), before, atol=0, rtol=0)


def test_a_failure_gives_the_adapter_its_own_tensors_back(halved):
    model = halved(broken=True)
    before = own_tensors(model)
    with pytest.raises(RuntimeError, match="broken"):
        get_peft_model_state_dict(model, state_dict={name: t + 1 for name, t in model.state_dict().items()})
    torch.testing.assert_close(own_tensors(model), before, atol=0, rtol=0)


# ------------------------------------------------------------------------------------------------- strictness

MISFITS = {
    "missing": (lambda t: t.pop(LOW), "missing from the file"),
    "extra": (lambda t: t.update({"base_model.model.third.low": torch.zeros(2, 2)}), "third"),
    "misspelt": (lambda t: t.update({"base_model.model.first.lov": t.pop(LOW)}), "first.low"),
    "misshapen": (lambda t: t.update({LOW: torch.zeros(2, 9)}), r"\[2, 9\] in the file, \[2, 4\] in the adapter"),
    "of another rank": (lambda t: t.update({LOW: torch.zeros(2)}), r"\[2\] in the file"),
    "empty": (lambda t: t.clear(), "missing"),
    "no buffer": (lambda t: t.pop("base_model.model.first.fixed"), "fixed"),
    "no saved module": (lambda t: t.pop("base_model.model.head.bias"), "head.bias"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused(misfit, saved):
    change, says = MISFITS[misfit]
    edit(saved, change)
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved, match=says)


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_beside_other_adapters(misfit, saved):
    change, says = MISFITS[misfit]
    edit(saved, change)
    model = get_peft_model(Net(), config(r=1))
    assert_refused(lambda: model.load_adapter(saved, "other"), model, saved, match=says)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused(misfit, saved):
    change, says = MISFITS[misfit]
    edit(saved, change)
    state = load_file(saved / SAFETENSORS_NAME)
    model = get_peft_model(Net(), config())
    assert_refused(lambda: set_peft_model_state_dict(model, state), model, saved, match=says)


def test_who_is_not_strict_gets_a_report(saved):
    def change(tensors):
        tensors["base_model.model.third.low"] = tensors.pop(LOW)
        tensors["base_model.model.second.low"] = torch.zeros(9, 9)

    edit(saved, change)
    model = get_peft_model(Net(), config(r=1), "other")
    report = model.load_adapter(saved, "default", strict=False)
    assert report.missing_keys == (LOW,)
    assert report.unexpected_keys == ("base_model.model.third.low",)
    assert report.mismatched == {"base_model.model.second.low": ((9, 9), (2, 6))}
    assert not report.complete
    loaded = get_peft_model_state_dict(model)
    in_file = load_file(saved / SAFETENSORS_NAME)
    assert set(report.loaded) == set(in_file) & set(loaded) - {"base_model.model.second.low"}
    assert all(torch.equal(loaded[name], in_file[name]) for name in report.loaded)


def test_wrong_shapes_alone_can_be_left_as_they_are(saved):
    edit(saved, lambda t: t.update({LOW: torch.zeros(9, 9)}))
    model = Net()
    report = get_peft_model(model, config(), "other").load_adapter(saved, "default", ignore_mismatched_sizes=True)
    assert list(report.mismatched) == [LOW]
    edit(saved, lambda t: t.pop("base_model.model.first.high"))
    fresh = Net()
    assert_refused(
        lambda: PeftModel.from_pretrained(fresh, saved, ignore_mismatched_sizes=True), fresh, saved, match="first.high"
    )


def test_a_complete_file_gives_a_complete_report(saved):
    model = get_peft_model(Net(), config(r=1), "other")
    report = model.load_adapter(saved, "default")
    assert report.complete
    assert set(report.loaded) == set(load_file(saved / SAFETENSORS_NAME))


def test_a_file_of_another_model_is_refused(saved):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.first(x))

    model = Other()
    text = assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved)
    assert "second" in text or "head" in text


def test_what_is_neither_a_folder_nor_on_the_hub_is_refused(saved):
    model = Net()
    action = lambda: PeftModel.from_pretrained(model, "nobody/nothing", local_files_only=True)  # noqa: E731
    assert_refused(action, model, saved, match="nobody/nothing")


def test_a_keyword_that_is_unknown_is_refused(saved):
    model = Net()
    before = state_of(model)
    with pytest.raises(TypeError, match="strikt"):
        PeftModel.from_pretrained(model, saved, strikt=False)
    assert state_of(model) == before


def test_a_name_that_is_taken_is_refused(saved):
    model = get_peft_model(Net(), config())
    assert_refused(lambda: model.load_adapter(saved, "default"), model, saved, AdapterNameError, "exists already")


# ---------------------------------------------------------------------------------------------- damaged files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE = {
    "truncated": lambda d: truncate(d / SAFETENSORS_NAME),
    "no bytes": lambda d: (d / SAFETENSORS_NAME).write_bytes(b""),
    "other bytes": lambda d: (d / SAFETENSORS_NAME).write_bytes(b"PK\x03\x04" * 50),
    "length of the head is a lie": lambda d: (d / SAFETENSORS_NAME).write_bytes(b"\xff" * 8 + b"{}"),
    "no weights": lambda d: (d / SAFETENSORS_NAME).unlink(),
    "weights are a folder": lambda d: ((d / SAFETENSORS_NAME).unlink(), (d / SAFETENSORS_NAME).mkdir()),
    "no config": lambda d: (d / CONFIG_NAME).unlink(),
    "config truncated": lambda d: truncate(d / CONFIG_NAME),
    "config is a list": lambda d: (d / CONFIG_NAME).write_text("[]"),
    "config is not text": lambda d: (d / CONFIG_NAME).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_directories_are_refused(damage, saved):
    DAMAGE[damage](saved)
    model = Net()
    text = assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved)
    assert str(saved) in text


def test_a_missing_directory_is_refused(tmp_path):
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, tmp_path / "nowhere"), model, tmp_path, match="nowhere")


CONFIGS = {
    "no method": ({"peft_type": None}, ConfigError, "peft_type"),
    "unknown method": ({"peft_type": "NO_SUCH_METHOD"}, UnknownMethodError, "NO_SUCH_METHOD"),
    "wrong type": ({"r": "2"}, ConfigError, r"\.r: must be int"),
    "out of bounds": ({"r": 0}, ConfigError, r"\.r: must be at least 1"),
    "an option unknown here": ({"use_magic": True}, ConfigError, "use_magic"),
}


@pytest.mark.parametrize("wrong", CONFIGS)
def test_wrong_configs_are_refused(wrong, saved):
    change, error, says = CONFIGS[wrong]
    values = {**json.loads((saved / CONFIG_NAME).read_text()), **change}
    (saved / CONFIG_NAME).write_text(json.dumps(values))
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved, error, says)


@pytest.mark.parametrize("empty", [None, False, "", [], {}], ids=repr)
def test_an_unknown_option_that_asks_for_nothing_is_passed_over(empty, saved):
    values = {**json.loads((saved / CONFIG_NAME).read_text()), "use_magic": empty}
    (saved / CONFIG_NAME).write_text(json.dumps(values))
    assert PeftConfig.from_pretrained(saved) == PeftModel.from_pretrained(Net(), saved).peft_config["default"]


# --------------------------------------------------------------------------------------------------- pickles


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickles_never_run_code(writer, saved, tmp_path):
    (saved / SAFETENSORS_NAME).unlink()
    proof = tmp_path / "ran"
    payload = {LOW: Attack(proof)}
    if writer == "torch":
        torch.save(payload, saved / BIN_NAME)
    else:
        (saved / BIN_NAME).write_bytes(pickle.dumps(payload))
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved, match="never loaded")
    assert not proof.exists()


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, torch.zeros(1)], ids=str)
def test_pickles_that_hold_something_else_are_refused(value, saved):
    (saved / SAFETENSORS_NAME).unlink()
    torch.save(value, saved / BIN_NAME)
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, saved), model, saved)


def test_a_truncated_pickle_is_refused(tmp_path):
    get_peft_model(Net(), config()).save_pretrained(tmp_path, safe_serialization=False)
    truncate(tmp_path / BIN_NAME)
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, tmp_path), model, tmp_path, match=BIN_NAME)


# ---------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def sharded(tmp_path) -> Path:
    directory = tmp_path / "sharded"
    get_peft_model(Net(), config()).save_pretrained(directory, max_shard_size=100)
    return directory


def rewrite_index(directory: Path, change) -> None:
    index = json.loads((directory / INDEX_NAME).read_text())
    change(index)
    (directory / INDEX_NAME).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors", "..", ".", "", 7, None], ids=repr
)
def test_an_index_can_not_lead_out_of_the_directory(name, sharded):
    secret = sharded.parent / "secret.safetensors"
    save_file({LOW: torch.zeros(2, 4)}, secret)
    rewrite_index(sharded, lambda index: index["weight_map"].update({LOW: name}))
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, sharded), model, sharded)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("weight_map"),
        lambda index: index.update(weight_map=[]),
        lambda index: index["weight_map"].update({"base_model.model.first.lost": index["weight_map"][LOW]}),
        lambda index: index["weight_map"].update({LOW: "adapter_model-00009-of-00009.safetensors"}),
        lambda index: index["weight_map"].update({LOW: ["a"]}),
    ],
    ids=["no map", "map is a list", "promises too much", "names no file", "names a list"],
)
def test_a_wrong_index_is_refused(change, sharded):
    rewrite_index(sharded, change)
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, sharded), model, sharded)


def test_a_missing_shard_is_refused(sharded):
    sorted(sharded.glob("adapter_model-*"))[1].unlink()
    model = Net()
    assert_refused(lambda: PeftModel.from_pretrained(model, sharded), model, sharded)


# ---------------------------------------------------------------------------------- writing that does not succeed


def break_after(monkeypatch, files: int) -> None:
    """Let the disk fail when the given number of files has been brought to it."""
    real, done = os.fsync, []

    def fsync(handle):
        if len(done) == files:
            raise OSError(28, "No space left on device")
        done.append(handle)
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("form", [{}, {"max_shard_size": 100}, {"safe_serialization": False}], ids=str)
def test_a_failed_save_leaves_each_file_whole(form, saved, monkeypatch):
    """No half-written file, none left over; what stood there can still be read."""
    before = contents(saved)
    expected = output(PeftModel.from_pretrained(Net(), saved))
    model = get_peft_model(Net(), config())
    state = state_of(model)
    break_after(monkeypatch, 0)
    with pytest.raises(CheckpointError, match="No space left"):
        model.save_pretrained(saved, **form)
    assert contents(saved) == before
    assert torch.equal(output(PeftModel.from_pretrained(Net(), saved)), expected)
    assert state_of(model) == state


@contextmanager
def full_disk():
    """Let the system refuse to write files beyond a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", [{}, {"max_shard_size": 100}, {"safe_serialization": False}], ids=str)
def test_a_full_disk_is_a_named_error(form, saved):
    """Each library says it in an error of its own class."""
    model = get_peft_model(Net(), config())

    def save():
        with full_disk():
            model.save_pretrained(saved, **form)

    assert_refused(save, model, saved, match="can't be written")


def test_a_file_is_replaced_and_never_written_over(saved, tmp_path):
    """Who has the old one open goes on reading the old one."""
    old = contents(saved)
    for name in old:
        os.link(saved / name, tmp_path / name)
    get_peft_model(Net(), config(r=3)).save_pretrained(saved)
    assert {name: (tmp_path / name).read_bytes() for name in old} == old
    assert all(contents(saved)[name] != old[name] for name in old)


def test_a_save_that_fails_between_files_is_never_a_mixture(saved, monkeypatch):
    """Weights of one adapter beside the config of another would be loaded without a word."""
    before = contents(saved)
    break_after(monkeypatch, 1)
    with pytest.raises(CheckpointError):
        get_peft_model(Net(), config(r=2)).save_pretrained(saved)
    assert contents(saved) == before


def test_shards_that_fail_half_way_leave_the_old_adapter(saved, monkeypatch):
    expected = output(PeftModel.from_pretrained(Net(), saved))
    break_after(monkeypatch, 2)
    with pytest.raises(CheckpointError):
        get_peft_model(Net(), config()).save_pretrained(saved, max_shard_size=100)
    assert torch.equal(output(PeftModel.from_pretrained(Net(), saved)), expected)
    assert set(contents(saved)) == {CONFIG_NAME, SAFETENSORS_NAME}


def test_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    model = get_peft_model(Net(), config())
    assert_refused(lambda: model.save_pretrained(tmp_path / "taken"), model, tmp_path, match="can't be written")


def test_a_directory_that_is_not_writable_is_refused(saved, monkeypatch):
    """The answer of the system is put in its place here: the superuser may write everywhere."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(saved))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    model = get_peft_model(Net(), config())
    text = assert_refused(lambda: model.save_pretrained(saved), model, saved, match="Permission denied")
    assert "writable" in text
