"""P-tuning here and in HF PEFT."""

import pytest
import torch

from peftcore.testing import Libraries, ParityCase
from peftcore.testing.models import bert, gpt2, llama, t5
from peftcore.testing.parity import check_same_distribution, save

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
MODELS = {
    "gpt2": (gpt2, {"input_ids": IDS, "attention_mask": MASK}, "CAUSAL_LM"),
    "llama": (llama, {"input_ids": IDS, "attention_mask": MASK}, "CAUSAL_LM"),
    "t5": (t5, {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}, "SEQ_2_SEQ_LM"),
    "bert": (bert, {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}, "SEQ_CLS"),
}
NETWORKS = {
    "mlp": {},
    "mlp, narrow": {"encoder_hidden_size": 5},
    "lstm": {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 5},
    "lstm, one layer": {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1},
}


def libraries_for(architecture, network, **options):
    build, inputs, task = MODELS[architecture]
    config = {"task_type": task, "num_virtual_tokens": 3, **NETWORKS[network], **options}
    return Libraries("p_tuning", ParityCase(build, inputs, config, model_scale=0.2))


@torch.no_grad()
def check_same(libraries, one, other):
    inputs = libraries.case.inputs
    expected, actual = one(**inputs), other(**inputs)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    frozen = libraries.case.frozen()(**inputs).logits
    assert (expected.logits[:, -1] - frozen[:, -1]).abs().max() > 1e-3  # the adapter does something
    if "labels" in inputs:
        torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-5)
    if one.can_generate():
        asked = {"input_ids": IDS, "max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        first = one.generate(**asked, attention_mask=torch.ones_like(IDS))
        assert torch.equal(other.generate(**asked, attention_mask=torch.ones_like(IDS)), first)


@pytest.fixture(params=[(model, network) for model in MODELS for network in NETWORKS], ids=" ".join)
def libraries(request):
    return libraries_for(*request.param)


def test_what_is_written_here_acts_the_same_there(libraries, tmp_path):
    ours = libraries.ours()
    save(ours, tmp_path)
    check_same(libraries, ours, libraries.load_there(tmp_path))


def test_what_is_written_there_acts_the_same_here(libraries, tmp_path):
    theirs = libraries.theirs()
    there = save(theirs, tmp_path / "there")
    ours = libraries.load_here(tmp_path / "there")
    here = save(ours, tmp_path / "here")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in there)
    check_same(libraries, theirs, ours)
    check_same(libraries, theirs, libraries.load_here(tmp_path / "there", low_cpu_mem_usage=True))


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_step_of_training_does_the_same(network):
    libraries = libraries_for("gpt2", network)
    ours, theirs = libraries.ours(), libraries.theirs()
    here, there = ours.base_model.prompt_encoder["default"].prompt_encoder, theirs.prompt_encoder["default"]
    here.load_state_dict(there.state_dict())
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(**libraries.case.inputs, labels=IDS).loss.backward()
        optimizer.step()
    for name, tensor in there.state_dict().items():
        torch.testing.assert_close(here.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_both_start_from_one_distribution(network):
    libraries = libraries_for("llama", network, num_virtual_tokens=200, encoder_hidden_size=40)
    ours, theirs = libraries.ours(perturbed=False), libraries.theirs(perturbed=False)
    here = ours.base_model.prompt_encoder["default"].prompt_encoder.state_dict()
    check_same_distribution(here, theirs.prompt_encoder["default"].state_dict())
