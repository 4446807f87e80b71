"""``peftcore inspect``: adapter directories, sound, damaged and malicious."""

import json
import os
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcore.registry import registry

LORA = registry["lora"].config_cls
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def adapter(save):
    return save(LORA(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def problems_of(run_json, adapter):
    return " ".join(run_json("inspect", adapter)["problems"])


def test_it_tells_what_the_files_hold(run_json, adapter, base):
    told = run_json("inspect", adapter)
    state = load_file(adapter / FILE)
    assert told["method"] == "lora" and told["task"] == "CAUSAL_LM" and told["base_model"] == str(base)
    assert "peftcore-lora" in told["writer"] and told["problems"] == []
    assert told["options"] == {"r": 3, "target_modules": ["q_proj"]}
    assert {one["name"]: (tuple(one["shape"]), one["norm"]) for one in told["tensors"]} == {
        name: (tuple(tensor.shape), pytest.approx(tensor.norm().item())) for name, tensor in state.items()
    }
    assert told["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert told["size"] == sum(file.stat().st_size for file in adapter.iterdir())


def test_sharded_adapters_are_read_whole(run_json, adapter, base_model, tmp_path):
    from peftcore import PeftModel

    PeftModel.from_pretrained(base_model, adapter).save_pretrained(tmp_path / "sharded", max_shard_size=500)
    assert (tmp_path / "sharded" / "adapter_model.safetensors.index.json").is_file()
    told, whole = run_json("inspect", tmp_path / "sharded"), run_json("inspect", adapter)
    assert sorted(told["tensors"], key=str) == sorted(whole["tensors"], key=str)
    assert told["writer"] == whole["writer"] and not told["problems"]


def test_without_the_plugin_the_rest_is_told(run_json, adapter):
    values = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**values, "peft_type": "OF_A_STRANGER"}))
    told = run_json("inspect", adapter)
    assert told["method"] == "of_a_stranger" and told["options"]["r"] == 3 and len(told["tensors"]) == 4
    assert "of_a_stranger" in " ".join(told["problems"]).lower()


def test_check_fails_where_there_are_problems(run, adapter):
    assert run("inspect", adapter, "--check").exit_code == 0
    state = load_file(adapter / FILE)
    first = next(iter(state))
    save_file({**state, first: state[first].fill_(float("nan"))}, adapter / FILE)
    result = run("inspect", adapter, "--check")
    assert result.exit_code == 1 and f"{first} holds numbers that are not finite" in result.stdout
    assert json.loads(run("inspect", adapter, "--json").stdout)["tensors"][0]["norm"] == "nan"


# --------------------------------------------------------------------------------------------- damaged files


def truncated(adapter):
    content = (adapter / FILE).read_bytes()
    (adapter / FILE).write_bytes(content[: len(content) - 100])


def no_tensors(adapter):
    (adapter / FILE).unlink()


def foreign(adapter):
    (adapter / FILE).write_bytes(b"\x89PNG\r\n\x1a\n" * 100)


def endless_header(adapter):
    (adapter / FILE).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def more_than_the_file(adapter):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    (adapter / FILE).write_bytes(struct.pack("<Q", len(header)) + header)


def outside_by_index(adapter):
    os.rename(adapter / FILE, adapter.parent / "secret.safetensors")
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (adapter / f"{FILE}.index.json").write_text(json.dumps(index))


def outside_by_an_absolute_path(adapter):
    os.rename(adapter / FILE, adapter.parent / "secret.safetensors")
    index = {"weight_map": {"x": str(adapter.parent / "secret.safetensors")}}
    (adapter / f"{FILE}.index.json").write_text(json.dumps(index))


def odd_index(adapter):
    (adapter / FILE).unlink()
    (adapter / f"{FILE}.index.json").write_text('{"weight_map": {"x": 3}}')


def huge_from_little(adapter):
    """A view that repeats one number: reading what it claims would never end."""
    (adapter / FILE).unlink()
    torch.save({"x": torch.zeros(1).expand(2**20, 2**20)}, adapter / "adapter_model.bin")


def compressed(adapter):
    (adapter / FILE).unlink()
    torch.save({"x": torch.zeros(2**16)}, adapter / "stored.bin")
    packed = zipfile.ZipFile(adapter / "adapter_model.bin", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(adapter / "stored.bin") as stored, packed:
        for member in stored.namelist():
            packed.writestr(member, stored.read(member))
    (adapter / "stored.bin").unlink()


DAMAGES = [
    truncated,
    no_tensors,
    foreign,
    endless_header,
    more_than_the_file,
    outside_by_index,
    outside_by_an_absolute_path,
    odd_index,
    huge_from_little,
    compressed,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_tensors_are_a_problem_and_the_rest_is_told(run, adapter, damage):
    damage(adapter)
    result = run("inspect", adapter, "--check", "--json")
    assert result.exit_code == 1, result.exception
    told = json.loads(result.stdout)
    assert told["method"] == "lora" and len(told["problems"]) == 1 and told["tensors"] == []


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("command", ["inspect", "merge", "convert"])
def test_a_pickle_that_would_run_code_does_not(run, adapter, base, tmp_path, command):
    (adapter / FILE).unlink()
    torch.save({"x": Bomb(tmp_path / "exploded")}, adapter / "adapter_model.bin")
    arguments = {
        "inspect": (adapter, "--check"),
        "merge": (base, adapter, tmp_path / "out"),
        "convert": (adapter, tmp_path / "out", "--to", "lora", "--rank", 2),
    }[command]
    result = run(command, *arguments)
    assert result.exit_code == (1 if command == "inspect" else 2)
    assert "more than tensors, which is never loaded" in result.stdout + result.stderr
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"r": ' + b"9" * 10_000 + b"}"],
    ids=["empty", "a list", "truncated", "no text", "nested without end", "a number without end"],
)
def test_a_damaged_config_is_one_clear_error(refused, adapter, content):
    (adapter / CONFIG).write_bytes(content)
    assert CONFIG in refused("inspect", adapter)


def test_a_huge_config_is_not_read(refused, adapter):
    with open(adapter / CONFIG, "wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    assert "no adapter needs" in refused("inspect", adapter)


def test_a_missing_directory_or_config_is_one_clear_error(refused, tmp_path):
    assert "is no folder" in refused("inspect", tmp_path / "nowhere")
    assert "does not exist" in refused("inspect", tmp_path)


def test_nothing_from_a_file_commands_the_terminal(run, adapter):
    state = load_file(adapter / FILE)
    save_file({"\x1b[2Jx\r\u202e": torch.ones(2), **state}, adapter / FILE)
    values = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": "\x1b]0;title\x07"}))
    shown = run("inspect", adapter).stdout
    assert "\\x1b[2Jx\\r\\u202e" in shown
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)
