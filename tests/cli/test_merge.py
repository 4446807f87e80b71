"""``peftcore merge``."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from peftcore import PeftModel, PromptTuningConfig
from peftcore.registry import registry

LORA = registry["lora"].config_cls


@pytest.fixture
def adapter(save):
    return save(LORA(r=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["lora", "ia3", "oft"])
def test_the_written_model_is_the_adapted_one(run_json, save, base, base_model, tokens, tmp_path, method):
    adapter = save(registry[method].config_cls(task_type="CAUSAL_LM"))
    adapted = PeftModel.from_pretrained(base_model, adapter)
    told = run_json("merge", base, adapter, tmp_path / "out")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits)
    assert told["layers"] == len(adapted.get_layer_status())
    assert (tmp_path / "out" / "tokenizer.json").is_file() and told["copied"] == ["tokenizer.json"]


def test_base_and_adapter_stay_as_they_were(run_json, adapter, base, tmp_path):
    before = contents(base), contents(adapter)
    run_json("merge", base, adapter, tmp_path / "out")
    assert (contents(base), contents(adapter)) == before


def test_others_may_read_what_was_written(run_json, adapter, base, tmp_path):
    run_json("merge", base, adapter, tmp_path / "out")
    (tmp_path / "made").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "made").stat().st_mode


def test_nothing_is_written_over(refused, adapter, base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert "exists already" in refused("merge", base, adapter, out)
    (out / "precious").write_text("mine")
    assert "exists already" in refused("merge", base, adapter, out)
    assert contents(out) == {"precious": b"mine"}
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "exists already" in refused("merge", base, adapter, tmp_path / "link")


def test_bad_input_writes_nothing(refused, adapter, base, outline, save, tmp_path):
    prompt = save(PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "prompt")
    misfit = save(LORA(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM"), "misfit")
    state = load_file(misfit / "adapter_model.safetensors")
    save_file({f"{name}.odd": tensor for name, tensor in state.items()}, misfit / "adapter_model.safetensors")
    before = set(os.listdir(tmp_path))
    out = tmp_path / "out"
    assert "no folder" in refused("merge", base, tmp_path / "nowhere", out)
    assert "can't be loaded" in refused("merge", outline, adapter, out)
    assert "does not fit" in refused("merge", base, misfit, out)
    assert "no weight can hold" in refused("merge", base, prompt, out)
    assert "is no folder" in refused("merge", base, adapter, tmp_path / "nowhere" / "out")
    assert set(os.listdir(tmp_path)) == before


def test_weights_that_are_not_finite_are_refused(refused, adapter, base, tmp_path):
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor * float("inf") for name, tensor in load_file(file).items()}, file)
    assert "finite" in refused("merge", base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing(refused, adapter, base, tmp_path, monkeypatch):
    def fail(self, folder, **kwargs):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    before = set(os.listdir(tmp_path))
    assert "No space left on device" in refused("merge", base, adapter, tmp_path / "out")
    assert set(os.listdir(tmp_path)) == before
