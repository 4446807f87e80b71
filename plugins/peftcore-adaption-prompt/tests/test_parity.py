"""Adaption prompts here and in HF PEFT."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import VOCABULARY, gpt2, llama

IDS = torch.arange(12).reshape(2, 6)
OPTIONS = {"task_type": "CAUSAL_LM", "adapter_len": 4, "adapter_layers": 2}
PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])}


def gqa():
    return llama(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, use_cache=True)


def mistral():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes))


def cached_gpt2():
    return gpt2(n_positions=40, n_layer=3, use_cache=True)


def case(build, inputs=IDS, **options):
    return ParityCase(build, inputs, {**OPTIONS, **options}, model_scale=0.2)


CAUSAL = {"llama": case(gqa), "mistral": case(mistral), "gpt2": case(cached_gpt2)}


class TestParity(ParityTests):
    method = "adaption_prompt"
    cases = {
        **CAUSAL,
        "llama, padded on the left": case(gqa, PADDED),
        "llama, one head for each": case(lambda: llama(num_key_value_heads=2)),
        "named": case(gqa, target_modules="self_attn", adapter_layers=3, adapter_len=1),
        "no task": case(gqa, task_type=None),
    }
    starts = {
        "llama": case(lambda: llama(hidden_size=64), adapter_len=30),
        "gpt2": case(lambda: gpt2(n_embd=64), adapter_len=30),
    }


@pytest.mark.parametrize("name", CAUSAL)
def test_both_generate_the_same(name, tmp_path):
    libraries = Libraries("adaption_prompt", CAUSAL[name], scale=1.0)
    ours = libraries.ours()
    ours.save_pretrained(tmp_path)
    theirs = libraries.load_there(tmp_path)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = ours.generate(input_ids=IDS, **options)
    assert torch.equal(tokens, theirs.generate(input_ids=IDS, **options))
    assert not torch.equal(tokens, CAUSAL[name].frozen().generate(input_ids=IDS, **options))


def test_both_train_alike():
    libraries = Libraries("adaption_prompt", CAUSAL["llama"])
    gradients = []
    for model in (libraries.ours(), libraries.theirs()):
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(gradients[0]) == len(gradients[1]) == 4
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_bias_of_the_output_projection_is_added_once():
    """There it is added a second time, by which even a new adapter changes the model."""
    biased = case(lambda: llama(attention_bias=True, num_key_value_heads=2))
    libraries = Libraries("adaption_prompt", biased)
    frozen = biased.answer(biased.frozen())
    ours, theirs = libraries.ours(perturbed=False), libraries.theirs(perturbed=False)
    assert torch.equal(biased.answer(ours), frozen)
    assert (biased.answer(theirs) - frozen).abs().max() > 1e-3
