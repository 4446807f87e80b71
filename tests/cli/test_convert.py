"""``peftcore convert``."""

import os

import pytest
import torch
from safetensors.torch import load_file

from peftcore import PeftModel, PromptTuningConfig
from peftcore.registry import registry

LORA = registry["lora"].config_cls
FULL = 32


@pytest.mark.parametrize("method", ["lora", "loha", "vera", "c3a", "oft"])
def test_at_full_rank_it_does_the_same(run_json, save, base_model, tokens, tmp_path, method):
    fields = {"block_size": 4} if method == "c3a" else {"oft_block_size": 8} if method == "oft" else {}
    targets = ["q_proj", "v_proj"]
    adapter = save(registry[method].config_cls(target_modules=targets, task_type="CAUSAL_LM", **fields))
    told = run_json("convert", adapter, tmp_path / "out", "--to", "lora", "--rank", FULL)
    model = PeftModel.from_pretrained(base_model, adapter, "before")
    model.load_adapter(tmp_path / "out", "after")
    before = model(tokens).logits
    model.set_adapter("after")
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
    assert told["error"] < 1e-5 and len(told["layers"]) == 4


def test_the_errors_are_those_of_the_files(run_json, save, base_model, tmp_path):
    adapter = save(LORA(r=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    told = run_json("convert", adapter, tmp_path / "out", "--to", "lora", "--rank", 2)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    config = LORA.from_pretrained(adapter)
    for layer in told["layers"]:
        a, b = (f"base_model.model.{layer['key']}.lora_{factor}.weight" for factor in "AB")
        delta = before[b] @ before[a] * config.lora_alpha / config.r
        kept = after[b] @ after[a]
        assert kept.shape == delta.shape and torch.linalg.matrix_rank(kept) == 2
        lost = (delta - kept).norm() / delta.norm()
        assert layer["error"] == pytest.approx(lost.item(), rel=1e-4)
        best = torch.linalg.svdvals(delta)[2:].norm() / delta.norm()
        assert layer["error"] == pytest.approx(best.item(), rel=1e-4)


def test_what_trains_beside_the_method_comes_along(run_json, save, base_model, tokens, tmp_path):
    config = LORA(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapter = save(config)
    run_json("convert", adapter, tmp_path / "out", "--to", "lora", "--rank", 4)
    model = PeftModel.from_pretrained(base_model, adapter, "before")
    model.load_adapter(tmp_path / "out", "after")
    before = model(tokens).logits
    model.set_adapter("after")
    torch.testing.assert_close(model(tokens).logits, before)


def test_a_delta_needs_no_weights_of_the_base_model_and_a_transform_does(run, run_json, save, outline, tmp_path):
    delta = save(registry["loha"].config_cls(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "delta")
    run_json("convert", delta, tmp_path / "one", "--to", "lora", "--rank", 4, "--base", outline)
    transform = save(registry["oft"].config_cls(target_modules=["q_proj"], task_type="CAUSAL_LM"), "transform")
    result = run("convert", transform, tmp_path / "two", "--to", "lora", "--rank", 4, "--base", outline)
    assert result.exit_code == 2 and "can't be loaded" in result.stderr


def test_what_cannot_be_converted_is_refused_and_nothing_written(refused, save, base, tmp_path):
    lora = save(LORA(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "lora")
    prompt = save(PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "prompt")
    bypass = save(registry["lily"].config_cls(target_modules=["q_proj"], task_type="CAUSAL_LM"), "bypass")
    before = set(os.listdir(tmp_path))
    out = tmp_path / "out"
    assert "change no weights" in refused("convert", prompt, out, "--to", "lora", "--rank", 2)
    assert "can't be merged" in refused("convert", bypass, out, "--to", "lora", "--rank", 2)
    assert "can: lora" in refused("convert", lora, out, "--to", "oft", "--rank", 2)
    assert "no_such" in refused("convert", lora, out, "--to", "no_such", "--rank", 2)
    assert "exists already" in refused("convert", lora, prompt, "--to", "lora", "--rank", 2)
    assert set(os.listdir(tmp_path)) == before


def test_a_rank_below_one_is_a_usage_error(run, tmp_path):
    assert run("convert", tmp_path, tmp_path / "out", "--to", "lora", "--rank", 0).exit_code == 2
