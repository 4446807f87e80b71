"""Cartridges here and in HF PEFT."""

import warnings

import peft
import pytest
import torch
from peft.tuners.cartridge import utils as hf_cartridge
from safetensors.torch import load_file

import peftcore_cartridge
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, gpt2, llama, t5

IDS = torch.arange(12).reshape(2, 6)
OPTIONS = {"num_virtual_tokens": 5, "num_frozen_tokens": 2}


def gqa():
    return llama(num_attention_heads=4, num_key_value_heads=2, use_cache=True)


def cached_gpt2():
    return gpt2(n_positions=40, use_cache=True)


def case(build, task, inputs=IDS, **options):
    return ParityCase(build, inputs, {"task_type": task, **OPTIONS, **options}, model_scale=0.2)


CAUSAL = {"gpt2": case(cached_gpt2, "CAUSAL_LM"), "llama": case(gqa, "CAUSAL_LM")}


class TestParity(ParityTests):
    method = "cartridge"
    cases = {
        **CAUSAL,
        "none frozen": case(gqa, "CAUSAL_LM", num_frozen_tokens=0),
        "left to the default": ParityCase(gqa, IDS, {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}, 0.2),
        "bert": case(bert, "SEQ_CLS", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
        "t5": case(lambda: t5(num_layers=3), "SEQ_2_SEQ_LM", {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}),
    }
    starts = {
        "random": ParityCase(gqa, (), {"task_type": "CAUSAL_LM", "num_virtual_tokens": 100, "num_frozen_tokens": 9})
    }


@pytest.mark.parametrize("name", CAUSAL)
def test_both_generate_the_same(name, tmp_path):
    libraries = Libraries("cartridge", CAUSAL[name])
    ours = libraries.ours()
    ours.save_pretrained(tmp_path)
    theirs = libraries.load_there(tmp_path)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    frozen = CAUSAL[name].frozen().generate(input_ids=IDS, **options)
    tokens = ours.generate(input_ids=IDS, **options)
    assert torch.equal(tokens, theirs.generate(input_ids=IDS, **options))
    assert not torch.equal(tokens, frozen)


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_both_train_the_same_rows(frozen):
    libraries = Libraries("cartridge", case(gqa, "CAUSAL_LM", num_frozen_tokens=frozen))
    counts = [
        {tuple(p.shape) for p in model.parameters() if p.requires_grad}
        for model in (libraries.ours(), libraries.theirs())
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", CAUSAL)
def test_both_start_alike_from_a_prefill(name):
    libraries = Libraries("cartridge", CAUSAL[name])
    text = torch.arange(9)[None] + 3
    with torch.no_grad():
        cache = CAUSAL[name].frozen()(input_ids=text, use_cache=True).past_key_values
    ours, theirs = libraries.ours(), libraries.theirs()
    one = peftcore_cartridge.initialize_kv_prefix_from_past_key_values(ours, past_key_values=cache)
    other = hf_cartridge.initialize_kv_prefix_from_past_key_values(theirs, past_key_values=cache)
    assert torch.equal(one, other)
    torch.testing.assert_close(CAUSAL[name].answer(ours), CAUSAL[name].answer(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_chat_template": False}, {"max_length": 6}], ids=str)
def test_both_start_alike_from_a_text(options, tokenizer):
    libraries = Libraries("cartridge", CAUSAL["llama"])
    text = " ".join(f"w{number}" for number in range(3, 12))
    one, other = (
        module.initialize_kv_prefix_from_text(model, tokenizer, text=text, **options)
        for module, model in ((peftcore_cartridge, libraries.ours()), (hf_cartridge, libraries.theirs()))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_both_compose_alike(tmp_path):
    for name, tokens in (("a", 3), ("b", 2), ("c", 4)):
        libraries = Libraries("cartridge", case(gqa, "CAUSAL_LM", num_virtual_tokens=tokens, num_frozen_tokens=1))
        libraries.ours().save_pretrained(tmp_path / name)
    paths = [tmp_path / name for name in "abc"]
    peftcore_cartridge.compose_cartridge_adapters(paths, output_path=tmp_path / "ours")
    peft.compose_cartridge_adapters(paths, output_path=tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and torch.equal(ours["prompt_embeddings"], theirs["prompt_embeddings"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configs = [peft.PeftConfig.from_pretrained(tmp_path / name) for name in ("ours", "theirs")]
    assert configs[0] == configs[1]
    composed = Libraries("cartridge", CAUSAL["llama"])
    here, there = composed.load_here(tmp_path / "theirs"), composed.load_there(tmp_path / "ours")
    torch.testing.assert_close(CAUSAL["llama"].answer(here), CAUSAL["llama"].answer(there), rtol=0, atol=1e-5)
