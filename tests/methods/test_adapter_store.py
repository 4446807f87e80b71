"""Every method in an AdapterStore: loaded, used by rows of one batch, taken out, and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcore import AdapterStore, PeftModel, get_peft_model
from peftcore.config import LayerConfig
from peftcore.registry import registry
from peftcore.testing import perturb

from .small_configs import first_party_methods, small_config

#: What calls need beside.
ARGUMENTS = {"multitask_prompt_tuning": {"task_ids": torch.tensor([0, 0, 0])}}
#: Methods that write to what they train in each call, so that the store counts them as changed.
WRITING = {"cpt"}

IDS = torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]])


def llama() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config).eval()


def options(method: str) -> dict[str, object]:
    """Name the layers, for methods that adapt projections and have no default for them."""
    found, adapter_cls = small_config(method), registry[method].adapter_cls
    asks = isinstance(found, LayerConfig) and registry.default_target_modules(method, "llama") is None
    projects = adapter_cls is not None and "linear" in adapter_cls.kinds
    return {"target_modules": ["q_proj", "v_proj"]} if asks and projects else {}


def logits(model: nn.Module, method: str, names: list[str]) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(IDS, adapter_names=names, **ARGUMENTS.get(method, {})).logits
    return output


@pytest.mark.parametrize("method", first_party_methods())
def test_a_method_comes_and_goes(method: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        adapted = get_peft_model(llama(), small_config(method, **options(method)), adapter_name=name)
        perturb(adapted)
        adapted.save_pretrained(tmp_path)
    by_hand = PeftModel.from_pretrained(llama(), tmp_path / "one", "one").eval()
    by_hand.load_adapter(tmp_path / "two", "two")

    store_model = PeftModel(llama(), None).eval()
    store = AdapterStore(store_model, tmp_path, capacity=1, host_bytes=10**7)
    for name in ("one", "two", "one"):
        with store.pinned(name):
            names = [name, "__base__", name]
            torch.testing.assert_close(logits(store_model, method, names), logits(by_hand, method, names))
        assert store.loaded() == (name,)
        if method in WRITING:
            store.drop(name, discard_changes=True)
    assert store.source.reads == (3 if method in WRITING else 2)
    store.capacity = 2
    with store.pinned(["two", "one"]):
        names = ["two", "one", "__base__"]
        torch.testing.assert_close(logits(store_model, method, names), logits(by_hand, method, names))
    for name in ("one", "two"):
        store.drop(name, discard_changes=method in WRITING)
    assert store_model.base_model.layers() == ()
