"""``peftcore targets``."""

import json

import pytest

from peftcore import PromptTuningConfig, get_peft_model
from peftcore.registry import registry

LORA = registry["lora"].config_cls


def config_file(path, **values):
    path.write_text(json.dumps({"peft_type": "LORA", **values}))
    return path


@pytest.mark.parametrize("name", ["lora", "vera", "oft", "ia3"])
def test_it_says_what_get_peft_model_does(run_json, outline, base_model, name):
    told = run_json("targets", outline, name)
    model = get_peft_model(base_model, registry[name].config_cls())
    assert [match["module"] for match in told["matched"]] == [status.name for status in model.get_layer_status()]
    assert told["trainable"] == model.get_nb_trainable_parameters()[0]
    assert told["total"] == sum(p.numel() for n, p in model.named_parameters() if ".adapters." not in n)


def test_modules_that_are_alike_stand_once_in_the_tree(run, outline, tmp_path):
    shown = run("targets", outline, config_file(tmp_path / "c.json", target_modules=["q_proj", "lm_head"])).stdout
    assert "q_proj (x2)" in shown and "32 × 32" in shown
    assert shown.count("q_proj") == 2  # the module, and what asks for it


def test_what_does_not_match_is_named_with_the_nearest_names(run, outline, tmp_path):
    config = config_file(tmp_path / "c.json", target_modules=["q_prj", "v_proj"])
    result = run("targets", outline, config)
    assert result.exit_code == 0 and "'q_prj' fits no module" in result.stdout and "q_proj" in result.stdout
    assert run("targets", outline, config, "--check").exit_code == 1
    assert run("targets", outline, config_file(config, target_modules=["v_proj"]), "--check").exit_code == 0


def test_what_cannot_be_adapted_is_named(run_json, outline, tmp_path):
    told = run_json("targets", outline, config_file(tmp_path / "c.json", target_modules=["mlp", "q_proj"]))
    assert told["unsupported"] == ["model.layers.0.mlp", "model.layers.1.mlp"] and told["problems"]
    assert told["trainable"] is None


def test_what_trains_beside_the_method_is_counted_apart(run_json, outline, save):
    told = run_json("targets", outline, save(LORA(target_modules=["q_proj"], modules_to_save=["lm_head"])))
    assert told["beside"] == {"lm_head": 61 * 32}
    assert told["trainable"] == 61 * 32 + 2 * 8 * 64


def test_a_prompt_method_has_none(run_json, run, outline, save):
    adapter = save(PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert run_json("targets", outline, adapter)["trainable"] == 3 * 32
    assert "adapts no layers" in run("targets", outline, adapter).stdout


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        ("./missing/folder", "lora", "does not exist"),
        (".", "lora", "config.json"),
        ("foreign", "lora", "transformers"),
        ("base", "lroa", "lroa"),
        ("base", "bad.json", "can't be read as JSON"),
        ("base", "unknown.json", "no_such_method"),
        ("base", "wrong.json", "LoraConfig.r"),
    ],
)
def test_bad_input_is_one_clear_error(refused, base, tmp_path, monkeypatch, model, config, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(
        '{"model_type": "of-a-stranger", "auto_map": {"AutoModel": "x.Y"}}'
    )
    (tmp_path / "bad.json").write_text('{"peft_type": "LORA"')
    config_file(tmp_path / "unknown.json", peft_type="NO_SUCH_METHOD")
    config_file(tmp_path / "wrong.json", r=0)
    assert said.lower() in refused("targets", model, config).lower()
