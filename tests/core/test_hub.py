"""Sharing adapters on the hub, whose place a recorder takes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.exceptions import AdapterNameError, CheckpointError

from .methods import PlainConfig
from .models import Single, same


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What would have been sent, by the hub's methods."""
    sent = {}

    class Recorder:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo_id, **options):
            if repo_id == "somebody/else":
                raise huggingface_hub.errors.HFValidationError("not yours")
            sent["create_repo"] = {"repo_id": repo_id, **options}
            return SimpleNamespace(repo_id=f"owner/{repo_id}" if "/" not in repo_id else repo_id)

        def upload_folder(self, folder_path, **options):
            for file in Path(folder_path).rglob("*.*"):
                copy = tmp_path / file.relative_to(folder_path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
            sent["upload_folder"] = options
            pr_url = "a proposal" if options["create_pr"] else None
            return SimpleNamespace(commit_url="a commit", pr_url=pr_url)

    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    return sent


@pytest.fixture
def model():
    model = get_peft_model(Single(nn.Linear(5, 6)), PlainConfig(target_modules=["layer"]))
    model.add_adapter("second", PlainConfig(r=1, target_modules=["layer"]))
    return model


def test_adapters_are_uploaded_and_nothing_else(model, hub, tmp_path):
    assert model.push_to_hub("mine", private=True, token="secret", selected_adapters=["default"]) == "a commit"
    assert hub["token"] == "secret"
    assert hub["create_repo"] == {"repo_id": "mine", "private": True, "exist_ok": True}
    assert hub["upload_folder"]["repo_id"] == "owner/mine"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(Single(nn.Linear(5, 6)), tmp_path)
    ours, theirs = (m.base_model.model.layer.adapters["default"].delta_weight() for m in (model, loaded))
    same(theirs, ours)


def test_a_proposal_s_address_is_returned(model, hub):
    assert model.push_to_hub("owner/name", create_pr=True, revision="next", commit_message="Better") == "a proposal"
    assert hub["upload_folder"]["revision"] == "next" and hub["upload_folder"]["commit_message"] == "Better"


def test_what_can_not_be_sent_is_said(model, hub):
    with pytest.raises(CheckpointError, match="can't be brought to somebody/else on the hub: not yours"):
        model.push_to_hub("somebody/else")
    with pytest.raises(AdapterNameError, match="third"):
        model.push_to_hub("mine", selected_adapters=["third"])
    assert "upload_folder" not in hub


def test_the_model_s_own_method_is_hidden(hub):
    base = Single(nn.Linear(5, 6))
    base.push_to_hub = lambda *args: pytest.fail("the base model would be uploaded")
    get_peft_model(base, PlainConfig(target_modules=["layer"])).push_to_hub("mine")


def test_the_missing_package_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install peftcore"):
        model.push_to_hub("mine")
