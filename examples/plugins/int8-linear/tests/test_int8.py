"""Every method works on Int8Linear; targets and the command are found."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from int8_linear import Int8Linear
from safetensors.torch import save_file
from torch import nn

from peftcore import LayerConfig, PeftModel, get_peft_model, option, register_peft_method, unregister_peft_method
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.scale import OutputScale
from peftcore.exceptions import MergeError

X = torch.linspace(-2, 2, 18).sin().reshape(3, 6)


class RowConfig(LayerConfig, method="row"):
    spread: float = option(1.0, "Standard deviation at the start.")


class RowDelta(WeightDelta):
    """One row, added to all rows of the weight."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.row_weight = nn.Parameter(torch.randn(base.in_features) * config.spread)

    def delta_weight(self):
        return self.row_weight.expand(self.base.weight_shape)


class FactorConfig(LayerConfig, method="factor"):
    pass


class Factors(OutputScale):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.factor_outputs = nn.Parameter(torch.randn(base.out_features))

    def output_factors(self):
        return self.factor_outputs


@pytest.fixture(params=[(RowConfig, RowDelta), (FactorConfig, Factors)], ids=["delta", "scale"])
def config_cls(request):
    """A method that knows nothing of eight bits."""
    config_cls, adapter_cls = request.param
    register_peft_method(name=config_cls.method, config_cls=config_cls, adapter_cls=adapter_cls)
    yield config_cls
    unregister_peft_method(config_cls.method)


class Decoder(nn.Module):
    config = SimpleNamespace(model_type="int8_decoder")

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = make(nn.Linear(6, 8)), make(nn.Linear(8, 4))

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def dense(linear):
    """Return a plain layer with the rounded weight."""
    rounded = Int8Linear(linear)
    with torch.no_grad():
        linear.weight.copy_(rounded.weight * rounded.scale)
    return linear


def adapted(make, config):
    torch.manual_seed(1)
    return get_peft_model(Decoder(make), config)


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_method_acts_as_on_the_same_weights_in_full(config_cls):
    eight, full = (adapted(make, config_cls(target_modules=["up", "down"])) for make in (Int8Linear, dense))
    torch.testing.assert_close(eight(X), full(X))
    eight(X).sum().backward()
    full(X).sum().backward()
    for one, other in zip(trainable(eight).values(), trainable(full).values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_an_adapter_is_saved_and_loaded(config_cls, tmp_path):
    model = adapted(Int8Linear, config_cls(target_modules=["up"]))
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(Decoder(Int8Linear), tmp_path)(X), model(X))


def test_merging_is_refused_and_changes_nothing(config_cls):
    model = adapted(Int8Linear, config_cls(target_modules=["up"]))
    before = model(X)
    with pytest.raises(MergeError, match="keep the adapter in the model"):
        model.merge_adapter()
    assert torch.equal(model(X), before)


def test_default_targets_hold_for_every_method(config_cls):
    model = adapted(Int8Linear, config_cls())
    assert [name.split(".")[2] for name in trainable(model)] == ["up", "down"]


def test_the_command_tells_the_error_of_each_matrix(tmp_path):
    weight = torch.randn(8, 16)
    integers = (torch.arange(-127, 128).float() / 127).repeat(2, 1)
    save_file({"exact": integers, "some": weight, "bias": torch.randn(4)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", "from peftcore.cli import main; main()", "int8-error", "model.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines.keys() == {"exact", "some"}
    assert lines["exact"] == "0.00%"
    assert 0.0 < float(lines["some"].rstrip("%")) < 2.0
