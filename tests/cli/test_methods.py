"""``peftcore methods``."""

import dataclasses
import re

from peftcore.registry import registry


def test_every_method_is_described_from_its_own_plugin(run_json):
    found = {method["name"]: method for method in run_json("methods")}
    assert set(found) == set(registry.catalog.names())
    for name, described in found.items():
        method = registry[name]
        assert described["paper"] == method.paper
        assert described["distribution"].startswith(registry.catalog.claim(name).distribution)
        assert set(described["layers"]) == (set(method.adapter_cls.kinds) if method.adapter_cls else set())
    assert found["lora"]["family"] == "WeightDelta"
    assert found["oft"]["family"] == "WeightTransform"
    assert found["ln_tuning"]["family"] == "Selective"
    assert found["prompt_tuning"]["family"] == "PromptEncoder" and found["prompt_tuning"]["mergeable"] == "no"


def test_one_methods_options_are_its_configs_fields(run_json):
    described = run_json("methods", "lora")
    fields = {field.name: field for field in dataclasses.fields(registry["lora"].config_cls)}
    options = {option["name"]: option for option in described["options"]}
    assert set(options) == set(fields)
    assert options["r"] == {
        "name": "r",
        "type": "int",
        "default": "8",
        "meaning": fields["r"].metadata["meaning"] + " (at least 1)",
        "shared": False,
    }
    assert options["target_modules"]["shared"]


def test_the_example_runs(run):
    shown = run("methods", "lora").stdout
    example = shown[re.search(r"^from ", shown, re.MULTILINE).start() :]
    exec(compile(example, "example", "exec"), {})


def test_a_method_without_a_readme_has_an_example_all_the_same():
    from peftcore.cli.description import example
    from peftcore.method import PeftMethod

    lora = registry["lora"]
    classes = {"config_cls": lora.config_cls, "adapter_cls": lora.adapter_cls}
    registry.register(PeftMethod(name="lora", shares_prefix=True, **classes), replace=True)
    try:
        assert 'LoraConfig(target_modules=["…"])' in example(registry["lora"])
    finally:
        registry.unregister("lora")


def test_options_that_every_method_has_are_named_and_described_only_if_asked(run):
    assert "Modules to train whole" not in run("methods", "lora").stdout
    assert "Modules to train whole" in run("methods", "lora", "--all").stdout


def test_an_unknown_method_is_refused_with_advice(refused):
    assert "Did you mean" in refused("methods", "loraa")
