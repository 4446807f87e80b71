"""What is special about adaption prompts: the gate, the last layers, attentions of other forms, generation."""

import json
import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftcore import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import ConfigError, NotMergeableError, TargetError, UnsupportedLayerError
from peftcore.testing.models import VOCABULARY, gpt2, llama, t5
from peftcore.testing.trials import perturb, seeded
from peftcore_adaption_prompt import AdaptionPromptConfig

IDS = torch.arange(12).reshape(2, 6)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}


def shaken(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def base(**options):
    return shaken(lambda: llama(**{"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": True, **options}))


def config(**options):
    return AdaptionPromptConfig(**{"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": 1, **options})


def adapted(model=None, *, scale=1.0, **options):
    with seeded(1):
        model = get_peft_model(base() if model is None else model, config(**options)).eval()
    perturb(model, scale=scale)
    return model


def placements(model):
    return [placement.path for placement in model.base_model.tuner("default").placements]


def logits(model, ids=IDS, **keywords):
    with torch.no_grad():
        return model(input_ids=ids, **keywords).logits


# ------------------------------------------------------------------------------------------------ the mathematics


def test_the_gate_starts_shut_and_opens_first():
    frozen = logits(base())
    model = get_peft_model(base(), config()).eval()
    assert torch.equal(logits(model), frozen)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = {name.rpartition(".")[2]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients["adaption_gate"].abs().item() > 0
    assert not gradients["adaption_prompt"].any()


def test_the_output_is_that_of_the_paper():
    """Two softmaxes over one row of scores, the prompt's times the gate, and one output projection of both."""
    model = adapted(base(num_hidden_layers=1))
    layer = model.get_base_model().model.layers[0].self_attn
    attention, adapter = layer.base_layer, layer.adapters["default"]
    x, length, width = torch.linspace(-1, 1, 2 * 5 * 16).sin().reshape(2, 5, 16), 5, 4
    angles = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(0, width, 2) / width)

    def heads(made, turned=False):
        made = made.reshape(len(made), -1, made.shape[-1] // width, width).transpose(1, 2)
        if turned:
            pairs = torch.complex(made[..., : width // 2], made[..., width // 2 :])
            pairs = pairs * torch.polar(torch.ones_like(angles), angles)
            made = torch.cat([pairs.real, pairs.imag], -1)
        return made if made.shape[1] == 4 else made.repeat_interleave(2, 1)

    with torch.no_grad():
        cosines, sines = (torch.cat([part, part], -1)[None] for part in (angles.cos(), angles.sin()))
        causal = torch.full((length, length), -math.inf).triu(1)
        actual, _ = layer(hidden_states=x, position_embeddings=(cosines, sines), attention_mask=causal[None, None])
        prompt = adapter.adaption_prompt.expand(2, -1, -1)
        keys = torch.cat([heads(attention.k_proj(prompt)), heads(attention.k_proj(x), True)], 2)
        values = torch.cat([heads(attention.v_proj(prompt)), heads(attention.v_proj(x))], 2)
        scores = heads(attention.q_proj(x), True) @ keys.transpose(-1, -2) / math.sqrt(width)
        ours, tokens = scores[..., :3], scores[..., 3:] + causal
        shares = torch.cat([adapter.adaption_gate * ours.softmax(-1), tokens.softmax(-1)], -1)
        expected = attention.o_proj((shares @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_it_cannot_be_merged():
    model = adapted()
    before = logits(model)
    with pytest.raises(NotMergeableError, match="depends on the input"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)


def test_low_rank_adapters_on_the_projections_act_on_the_prompt_too():
    """With the low-rank adapter merged into the frozen weights, the prompt does the same as with it beside."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    merged = get_peft_model(base(), lora)
    perturb(merged)
    state = get_peft_model_state_dict(merged)
    expected = logits(adapted(merged.merge_and_unload()))
    model = adapted()
    model.add_adapter("low", lora)
    set_peft_model_state_dict(model, state, "low")
    model.set_adapter(["default", "low"])
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert (expected - logits(adapted())).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------- which layers


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_last_layers_are_adapted(number):
    model = adapted(base(num_hidden_layers=3), adapter_layers=number)
    assert placements(model) == [f"model.layers.{index}.self_attn" for index in range(3 - number, 3)]


def test_targets_may_be_names_or_an_expression():
    for targets in ("self_attn", ["self_attn"], r"model\.layers\.\d+\.self_attn", None):
        assert placements(adapted(target_modules=targets)) == ["model.layers.1.self_attn"]


@pytest.mark.parametrize("targets", ["self_attn", None], ids=str)
def test_files_have_the_only_form_of_targets_that_hf_peft_reads(targets, tmp_path):
    adapted(target_modules=targets).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "self_attn"


# ------------------------------------------------------------------------------------------ other names and forms

PHI3 = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "o_proj": "o_proj"}
#: Model, and what its config has to say.
ATTENTIONS = {
    "llama": (lambda: llama(num_attention_heads=4, num_key_value_heads=2), {}),
    "llama, wide heads": (lambda: llama(head_dim=16), {}),
    "gpt2": (lambda: gpt2(), {}),
    "gpt2, its output projection named": (
        lambda: gpt2(),
        {"q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "c_proj"},
    ),
    "qwen3, which normalizes queries and keys": (
        lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
        {"target_modules": "self_attn"},
    ),
    "gemma3, which scales otherwise": (
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, head_dim=8, query_pre_attn_scalar=50)),
        {"target_modules": "self_attn"},
    ),
    "phi, which rotates a part of each head": (
        lambda: PhiForCausalLM(PhiConfig(**GROUPED, partial_rotary_factor=0.5)),
        {"target_modules": "self_attn", "q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "dense"},
    ),
    "phi3, which fuses grouped projections": (
        lambda: Phi3ForCausalLM(Phi3Config(**GROUPED, pad_token_id=0)),
        {"target_modules": "self_attn", **PHI3},
    ),
    "bert, whose output projection is elsewhere": (
        lambda: BertModel(BertConfig(**SIZES)),
        {
            "target_modules": ["attention.self"],
            "q_proj": "query",
            "k_proj": "key",
            "v_proj": "value",
            "head_dim": 4,
            "task_type": "FEATURE_EXTRACTION",
        },
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_queries_and_keys_are_those_of_the_attention_itself(name):
    """Of the first token, which is not rotated, the keys too."""
    build, options = ATTENTIONS[name]
    model = adapted(shaken(build), **options)
    frozen = logits_or_states(shaken(build))
    layer = next(module for path, module in model.named_modules() if path.endswith(placements(model)[0]))
    projections = layer.adapters["default"].projections
    seen, calls = [], []
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(module, query, key, value, mask, **options):
        seen.append((module, query, key, value, options.get("scaling")))
        return own(module, query, key, value, mask, **options)

    handle = layer.register_forward_hook(lambda _, args, kwargs, out: calls.append((args, kwargs)), with_kwargs=True)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = watched
    try:
        changed = logits_or_states(model)
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
        handle.remove()
    assert (changed - frozen).abs().max() > 1e-4
    (args, kwargs), (_, query, key, value, scaling) = calls[0], next(s for s in seen if s[0] is layer.base_layer)
    x, times = args[0] if args else kwargs["hidden_states"], query.shape[1] // key.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(projections.query(x, kwargs.get("position_embeddings")), query)
        first_key, first_value = projections.key_and_value(x[:, :1])
    torch.testing.assert_close(first_key, key[:, :, :1].repeat_interleave(times, 1))
    torch.testing.assert_close(first_value, value[:, :, :1].repeat_interleave(times, 1))
    assert projections.scaling == pytest.approx(query.shape[-1] ** -0.5 if scaling is None else scaling)


def logits_or_states(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


NAMED = {
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=32,
                word_embed_proj_dim=16,
            )
        ),
        {"target_modules": "self_attn"},
        {},
    ),
    "t5": (
        lambda: t5(),
        {
            "target_modules": "SelfAttention",
            "q_proj": "q",
            "k_proj": "k",
            "v_proj": "v",
            "o_proj": "o",
            "head_dim": 8,
            "adapter_layers": 2,
            "task_type": "SEQ_2_SEQ_LM",
        },
        {"decoder_input_ids": IDS[:, :3]},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_other_attentions_start_unchanged_and_learn(name):
    build, options, keywords = NAMED[name]
    frozen = logits(shaken(build), **keywords)
    model = get_peft_model(shaken(build), config(**options)).eval()
    assert torch.equal(logits(model, **keywords), frozen)
    perturb(model, scale=1.0)
    model(input_ids=IDS, **keywords).logits.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    assert (logits(model, **keywords) - frozen).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------ generation

BUILDS = {"llama": base, "gpt2": lambda: shaken(lambda: gpt2(n_positions=40, use_cache=True))}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_generation_is_the_same_with_and_without_a_cache(build):
    model = adapted(build(), adapter_layers=2)
    options = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "pad_token_id": 0}
    for choice in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"cache_implementation": "static"}):
        without = {key: value for key, value in choice.items() if key != "cache_implementation"}
        tokens = model.generate(**options, **{"do_sample": False, **choice})
        assert torch.equal(tokens, model.generate(**options, **{"do_sample": False, **without}, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(tokens, model.generate(**options, do_sample=False))


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_padding_on_the_left_changes_nothing(build):
    model = adapted(build(), adapter_layers=2)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
    mask = (torch.arange(8) > 1).long().repeat(2, 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    actual = logits(model, padded, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(actual[:, 2:], logits(model), rtol=0, atol=1e-5)


def test_activations_may_be_computed_again():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(adapter_layers=2)
        model.train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("use_cache", [False, True])
def test_rows_may_have_prompts_of_different_lengths(use_cache):
    model = adapted(base(use_cache=use_cache))
    model.add_adapter("longer", config(adapter_len=7, adapter_layers=2))
    perturb(model, "longer")
    model.add_adapter("low", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"]))
    perturb(model, "low")
    names, ids = ["default", "low", "__base__", "longer"], torch.arange(24).reshape(4, 6)
    together = logits(model, ids, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = logits(model, ids[row : row + 1])
        else:
            model.set_adapter(name)
            alone = logits(model, ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_rows_generate_with_prompts_of_their_own():
    model = adapted(adapter_layers=2)
    model.add_adapter("longer", config(adapter_len=7, adapter_layers=2))
    perturb(model, "longer")
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    for choice in ({"do_sample": False}, {"do_sample": False, "num_beams": 2}):
        together = model.generate(input_ids=IDS, adapter_names=["default", "longer"], **options, **choice)
        for row, name in enumerate(["default", "longer"]):
            model.set_adapter(name)
            alone = {**options, "attention_mask": options["attention_mask"][:1]}
            assert torch.equal(together[row : row + 1], model.generate(input_ids=IDS[row : row + 1], **alone, **choice))


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"adapter_len": None}, "adapter_len"),
        ({"adapter_layers": None}, "adapter_layers"),
        ({"adapter_len": 0}, "adapter_len"),
        ({"adapter_layers": 0}, "adapter_layers"),
        ({"adapter_len": 2.0}, "adapter_len"),
        ({"q_proj": "query"}, "k_proj"),
        ({"o_proj": "dense"}, "q_proj"),
        ({"head_dim": 0}, "head_dim"),
    ],
    ids=str,
)
def test_a_config_that_asks_for_the_impossible_is_refused(options, field):
    with pytest.raises(ConfigError, match=field):
        config(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adapter_layers": 3}, ConfigError, "is 3, and 2 attention modules were found"),
        ({"target_modules": "self_atn"}, TargetError, "self_attn"),
        ({"target_modules": "mlp"}, TargetError, "mlp"),
        ({"head_dim": 3}, UnsupportedLayerError, "heads of 3 don't go together"),
        (
            {"q_proj": "k_proj", "k_proj": "q_proj", "v_proj": "v_proj", "o_proj": "o_proj"},
            UnsupportedLayerError,
            "8 queries, 16 keys",
        ),
        ({"q_proj": "query", "k_proj": "key", "v_proj": "value"}, TargetError, "self_attn"),
    ],
    ids=str,
)
def test_what_the_model_does_not_have_leaves_it_as_it_was(options, error, message):
    model = base()
    before = {name: (id(module), module.training) for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        get_peft_model(model, config(**options))
    assert {name: (id(module), module.training) for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_attention_that_does_not_say_its_heads_is_refused():
    model = shaken(lambda: t5())
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
    with pytest.raises(UnsupportedLayerError, match="head_dim"):
        get_peft_model(model, config(target_modules="SelfAttention", task_type="SEQ_2_SEQ_LM", **names))
