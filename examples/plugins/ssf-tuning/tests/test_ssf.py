"""SSF keeps what every method promises, is the paper's formula, and reads its own older files."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from ssf_tuning import SSFConfig
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.exceptions import CheckpointError
from peftcore.testing import LayerMethodTests


class TestSSF(LayerMethodTests):
    method = "ssf"
    configs = ({"spread": 0.0}, {"spread": 0.2})
    no_identity_because = "factors and shifts start at random around 1 and 0, unless spread is 0"


def test_the_output_is_scaled_and_shifted():
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    y = layer(x)
    model = get_peft_model(nn.Sequential(layer), SSFConfig(target_modules=["0"], spread=1.0))
    gamma, beta = (parameter for parameter in model.parameters() if parameter.requires_grad)
    torch.testing.assert_close(model(x), gamma * y + beta)


def saved(model, folder, rename):
    """Save an adapter with its tensors under other names, as another version would have."""
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def as_version_one(key):
    return key.replace("ssf_factors", "gamma").replace("ssf_shift", "beta")


def test_files_of_the_first_version_are_read(tmp_path):
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    model = get_peft_model(nn.Sequential(layer), SSFConfig(target_modules=["0"], spread=1.0))
    expected = model(x)
    saved(model, tmp_path, as_version_one)
    assert any(key.endswith(".gamma") for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(PeftModel.from_pretrained(model.unload(), tmp_path)(x), expected)


def test_what_is_in_neither_form_is_an_error(tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(6, 4)), SSFConfig(target_modules=["0"]))
    saved(model, tmp_path, lambda key: key.replace("ssf_factors", "delta"))
    with pytest.raises(CheckpointError, match="delta"):
        PeftModel.from_pretrained(model.unload(), tmp_path)
