"""The kit's own parts, and what an author meets."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftcore import base_layers, get_peft_model
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.base_layers.parameter import ParameterLayer
from peftcore.config import LayerConfig
from peftcore.registry import registry
from peftcore.testing import SAMPLES, LayerMethodTests, Snapshot, assert_close, perturb
from peftcore.testing.samples import UNKNOWN

pytest_plugins = ["pytester"]

AUTHOR = """
import torch
from torch import nn
import pytest
import peftcore
from peftcore.adapters.delta import WeightDelta
from peftcore.config import LayerConfig, option
from peftcore.testing import LayerMethodTests

class TinyConfig(LayerConfig, method="tiny"):
    r: int = option(2, "Rank.")

class Tiny(WeightDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.tiny_a = nn.Parameter(torch.randn(config.r, base.in_features))
        self.tiny_b = nn.Parameter(torch.zeros(base.out_features, config.r))

    def delta_weight(self):
        return self.tiny_b @ self.tiny_a

peftcore.register_peft_method(name="tiny", config_cls=TinyConfig, adapter_cls=Tiny, replace=True)

class TestTiny(LayerMethodTests):
    method = "tiny"
    configs = ({"r": 2}, {"r": 3})
"""


@pytest.fixture
def author(pytester):
    """Returns a function that runs an author's test file with more lines in its test class."""
    pytester.makeini("[pytest]\nmarkers =\n    slow: takes long\nxfail_strict = true")

    def run(lines="", *arguments):
        pytester.makepyfile(AUTHOR + lines)
        return pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:randomly", *arguments)

    yield run
    if "tiny" in registry.catalog.in_process:
        registry.unregister("tiny")


def test_an_author_inherits_every_check_on_every_sample(author):
    result = author("", "-k", "start_is_the_frozen_model or names_are", "-v")
    result.assert_outcomes(passed=7, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["*::TestTiny::test_start_is_the_frozen_model?linear-tokens-config1? PASSED*"])


def test_a_failure_says_what_how_much_and_why(author):
    broken = "\n\nTiny.delta_forward = lambda self, x: -x @ self.tiny_a.T @ self.tiny_b.T\n"
    result = author(broken, "-k", "test_merged_equals_forward and linear-config0 and not bfloat16")
    result.assert_outcomes(failed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(
        ["E *The merged model's output differs from the forward pass's by *; * is allowed, since *the same sign*"]
    )


def test_a_check_replaced_without_a_reason_stops_the_run(author):
    result = author("\n    def test_merged_equals_forward(self, case): ...\n")
    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.fnmatch_lines(["E *TestTiny.test_merged_equals_forward replaces a check of the conformance kit*"])


def test_a_check_may_be_expected_to_fail_for_a_reason(author):
    result = author(
        "\n    @pytest.mark.xfail(reason='tiny is not installed')\n"
        "    def test_method_comes_from_an_installed_plugin(self):\n"
        "        super().test_method_comes_from_an_installed_plugin()\n",
        "-k",
        "comes_from_an_installed",
    )
    result.assert_outcomes(xfailed=1, deselected=result.parseoutcomes()["deselected"])


@pytest.mark.parametrize(
    "mark", [pytest.mark.xfail, pytest.mark.xfail(reason=""), pytest.mark.skip(reason="slow")], ids=str
)
def test_a_mark_without_a_reason_to_fail_is_no_excuse(mark):
    with pytest.raises(TypeError, match="test_names_are_consistent replaces a check"):

        class TestIt(LayerMethodTests):
            method, configs = "it", ({"r": 1}, {"r": 2})

            @mark
            def test_names_are_consistent(self): ...


@pytest.mark.parametrize("configs", [(), ({"r": 2},), ({"r": 2}, {"r": 2}), {"r": 2, "s": 3}], ids=str)
def test_two_different_configs_are_asked_for(configs):
    with pytest.raises(TypeError, match="at least two different configs"):
        type("TestIt", (LayerMethodTests,), {"method": "it", "configs": configs})


# ----------------------------------------------------------------------------------------------- samples


def test_every_kind_that_the_core_knows_has_a_plain_sample():
    assert {sample.kind for sample in SAMPLES if sample.plain} == MATRIX_KINDS | {"module"}


@pytest.mark.parametrize("sample", [*SAMPLES, UNKNOWN], ids=lambda sample: sample.name)
def test_samples_are_what_they_say(sample):
    model, again = sample.model(), sample.model()
    x = sample.batch(3)
    with torch.no_grad():
        output = model(x)
        assert torch.equal(output, again(sample.batch(3)))
        assert output.shape[0] == 3 and model(sample.batch(0)).shape == (0, *output.shape[1:])
        torch.testing.assert_close(model(x[1:2]), output[1:2])
    targets = [module for path, module in model.named_modules() if path.rpartition(".")[2] == "target"]
    if sample.kind == "parameter":
        kinds = {ParameterLayer(target, "matrix").kind for target in targets}
    else:
        kinds = {getattr(base_layers.adapt(target), "kind", "unknown") for target in targets}
    # What the core knows no view of can still be taken as a whole.
    assert kinds == {"unknown" if sample.kind == "module" else sample.kind}


# ---------------------------------------------------------------------------------------------- snapshot

CHANGES = {
    "a value": (lambda m: m[0].weight.data.add_(1), "0.weight holds other values"),
    "a flag": (lambda m: m[0].weight.requires_grad_(False), "0.weight has requires_grad=False"),
    "a tensor": (lambda m: setattr(m[0], "bias", nn.Parameter(m[0].bias.detach())), "0.bias is another tensor object"),
    "a module": (lambda m: m.__setitem__(0, copy.copy(m[0])), "0 is another object, a Linear"),
    "another module": (lambda m: m.append(nn.ReLU()), "module 2 is new"),
    "a hook": (lambda m: m[1].register_forward_hook(print), "1 has 1 hooks instead of 0"),
    "an attribute": (lambda m: setattr(m[1], "mark", 1), "1 has got the attribute 'mark'"),
    "the mode": (lambda m: m[0].eval(), "0 is in eval mode"),
    "a buffer": (lambda m: m.register_buffer("count", torch.zeros(1)), "tensor count is new"),
}


@pytest.mark.parametrize("change, said", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_sees(change, said):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    before = Snapshot.of(model)
    before.assert_same(model, "After nothing", "")
    change(model)
    with pytest.raises(AssertionError, match=said):
        before.assert_same(model, "After a change", "")


def test_a_snapshot_follows_tensors_out_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2))
    before, layer = Snapshot.of(model), model[0]
    model[0] = nn.Identity()
    before.assert_tensors_same("After a move", "")
    layer.weight.data += 1
    with pytest.raises(AssertionError, match=r"After a move.* 0.weight by 1"):
        before.assert_tensors_same("After a move", "")


# ---------------------------------------------------------------------------------- comparisons, perturb


@pytest.mark.parametrize("value", [1.1, float("nan"), float("inf")])
def test_what_is_not_close_is_said_with_its_cause(value):
    expected = torch.tensor([1.0, -2.0])
    assert_close(expected + 1e-6, expected, "It differs", "")
    with pytest.raises(AssertionError, match=r"^It differs by (0.1|inf); 0.0001 is allowed, since float32 .*Why\?$"):
        assert_close(torch.tensor([value, -2.0]), expected, "It differs", "Why?")


@pytest.mark.parametrize("actual", [torch.ones(1, 2), torch.ones(2).double()], ids=["shape", "dtype"])
def test_shape_and_dtype_count(actual, request):
    with pytest.raises(AssertionError, match=f"It differs in {request.node.callspec.id}"):
        assert_close(actual, torch.ones(2), "It differs", "")


class KitConfig(LayerConfig, method="kit"):
    pass


class Kit(WeightDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.kit_w = nn.Parameter(torch.zeros(base.weight_shape))

    def delta_weight(self):
        return self.kit_w


@pytest.fixture
def kit():
    registry.register(name="kit", config_cls=KitConfig, adapter_cls=Kit)
    yield
    registry.unregister("kit")


def test_perturb_moves_one_adapter_by_a_seed(kit):
    def made():
        model = get_peft_model(SAMPLES[0].model(), KitConfig(target_modules=["target"]), "one")
        model.add_adapter("two", KitConfig(target_modules=["target"]))
        return model

    def values(model, name):
        return torch.cat([p.detach().flatten() for path, p in model.named_parameters() if f".{name}.kit_w" in path])

    one, again, other = made(), made(), made()
    state = torch.get_rng_state()
    perturb(one, "two", seed=1, scale=0.1)
    perturb(again, "two", seed=1, scale=0.1)
    perturb(other, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values(one, "two"), values(again, "two"))
    assert 0.05 < values(one, "two").std() < 0.2
    assert not values(one, "one").any() and values(other, "one").any() and not values(other, "two").any()
    assert one.active_adapters == ["one"]


# --------------------------------------------------------------------------------------------- packaging


@pytest.mark.parametrize("text", ["import typer", "raise ValueError('no')", "import json"], ids=str.split)
def test_heavy_imports_are_seen(text, tmp_path, monkeypatch):
    (tmp_path / "typer.py").write_text("")
    (tmp_path / "heavy_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    claim = SimpleNamespace(entry_point=SimpleNamespace(module="heavy_plugin"))
    monkeypatch.setattr(registry.catalog, "claim", lambda name: claim)
    check = type("Suite", (LayerMethodTests,), {"method": "it", "configs": ({"r": 1}, {"r": 2})})()
    if text == "import json":
        check.test_importing_the_plugin_is_cheap()
        return
    with pytest.raises(AssertionError, match="imports typer" if "typer" in text else r"can't be imported(.|\n)*no"):
        check.test_importing_the_plugin_is_cheap()


def test_importing_peftcore_does_not_import_the_kit():
    code = "import sys, peftcore; sys.exit(any(name in sys.modules for name in ('pytest', 'peftcore.testing')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_pytest_the_kit_says_what_to_install():
    code = "import sys; sys.modules['pytest'] = None\nimport peftcore.testing"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip().endswith("peftcore.testing needs pytest: pip install peftcore[testing]")
