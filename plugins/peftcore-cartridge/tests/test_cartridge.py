"""What is special about cartridges: frozen rows, a start from a prefill, composing."""

import copy

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, StaticCache

from peftcore import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import AdapterNameError, CheckpointError, ConfigError, TaskError
from peftcore.testing.models import bert, llama, t5
from peftcore.testing.trials import perturb
from peftcore_cartridge import (
    CartridgeConfig,
    CartridgeEncoder,
    compose_cartridge_adapters,
    initialize_kv_prefix_from_past_key_values,
    initialize_kv_prefix_from_text,
    prompt_embeddings_from_past_key_values,
)

TEXT = torch.arange(9)[None] + 3
TOKENS = 5


def base(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = llama(**{"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": True, **options}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def adapted(**options):
    config = CartridgeConfig(
        **{"task_type": "CAUSAL_LM", "num_virtual_tokens": TOKENS, "num_frozen_tokens": 2, **options}
    )
    return get_peft_model(base(), config).eval()


def table(model, name="default"):
    return get_peft_model_state_dict(model, adapter_name=name)["prompt_embeddings"].clone()


@torch.no_grad()
def prefill(model, text=TEXT, **options):
    return model(input_ids=text, use_cache=True, **options).past_key_values


# ------------------------------------------------------------------------------------------------- frozen rows


@pytest.mark.parametrize("frozen", [0, 2, TOKENS])
def test_frozen_rows_stay_under_weight_decay_and_the_others_train(frozen):
    model = adapted(num_frozen_tokens=frozen)
    before = table(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=TEXT, labels=TEXT).loss.backward() if frozen < TOKENS else None
        optimizer.step()
    after = table(model)
    assert torch.equal(after[:frozen], before[:frozen])
    assert (after[frozen:] != before[frozen:]).all()


def test_training_goes_on_from_a_file_exactly(tmp_path):
    def step(model):
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5, weight_decay=0.1)
        model(input_ids=TEXT, labels=TEXT).loss.backward()
        optimizer.step()
        return table(model)

    model = adapted()
    perturb(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True).eval()
    saved, loaded = table(model), table(again)
    assert torch.equal(saved, loaded)
    after = step(again)
    assert torch.equal(after, step(model))
    assert not torch.equal(after, saved)


def test_a_file_of_another_size_leaves_the_adapter_as_it_was():
    model = adapted()
    before = table(model)
    for other in (before[:-1], before[:, :-8]):
        with pytest.raises(CheckpointError, match="prompt_embeddings"):
            set_peft_model_state_dict(model, {"prompt_embeddings": other + 1})
        assert torch.equal(table(model), before)
    headed = adapted(modules_to_save=["lm_head"])
    state = get_peft_model_state_dict(headed)
    wrong = {key: tensor + 1 if key == "prompt_embeddings" else tensor[1:] for key, tensor in state.items()}
    before = table(headed)
    with pytest.raises(CheckpointError, match="lm_head"):
        set_peft_model_state_dict(headed, wrong)
    assert torch.equal(table(headed), before)
    with pytest.raises(CheckpointError, match="missing"):
        set_peft_model_state_dict(model, {})


def test_a_copy_of_the_model_has_its_own_rows():
    model = adapted()
    other = copy.deepcopy(model)
    before = table(model)
    set_peft_model_state_dict(other, {"prompt_embeddings": before + 1})
    assert torch.equal(table(model), before)
    assert torch.equal(table(other), before + 1)


# ----------------------------------------------------------------------------------------------------- prefill


def logits_behind(model, ids, start):
    with torch.no_grad():
        return model(input_ids=ids).logits[:, start:]


@pytest.mark.parametrize("frozen", [0, 2, TOKENS])
def test_started_from_a_prefill_the_model_answers_as_if_it_had_read_the_text(frozen):
    model = adapted(num_frozen_tokens=frozen)
    cache = prefill(base())
    written = initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    assert torch.equal(table(model), written)
    expected = logits_behind(base(), TEXT, TOKENS)
    torch.testing.assert_close(model(input_ids=TEXT[:, TOKENS:]).logits, expected, rtol=0, atol=1e-5)


def test_a_text_is_read_without_adapters_and_in_evaluation(tokenizer):
    model = adapted()
    model.add_adapter("low", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["k_proj", "up_proj"]))
    model.set_adapter(["default", "low"])
    perturb(model)
    model.train()
    model.get_base_model().lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    text = " ".join(f"w{number}" for number in TEXT[0].tolist())
    rows = initialize_kv_prefix_from_text(model, tokenizer, text=text, use_chat_template=False)
    cache = prefill(base())
    torch.testing.assert_close(rows, prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=TOKENS))
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_text_becomes_a_system_message_where_there_is_a_template(tokenizer):
    model = adapted()
    rows = initialize_kv_prefix_from_text(model, tokenizer, text="w3 w4 w5 w6")
    cache = prefill(base(), torch.tensor([[1, 3, 4, 5, 6, 2]]))
    torch.testing.assert_close(rows, prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=TOKENS))
    tokenizer.chat_template = None
    rows = initialize_kv_prefix_from_text(model, tokenizer, text="w3 w4 w5 w6 w7")
    cache = prefill(base(), torch.tensor([[3, 4, 5, 6, 7]]))
    torch.testing.assert_close(rows, prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=TOKENS))


def test_caches_of_all_forms_give_the_same():
    dynamic = prefill(base())
    expected = prompt_embeddings_from_past_key_values(dynamic, num_virtual_tokens=TOKENS)
    pairs = [(layer.keys, layer.values) for layer in dynamic.layers]
    static = prefill(base(), past_key_values=StaticCache(config=base().config, max_cache_len=12))
    for cache in (pairs, tuple(pairs), static):
        torch.testing.assert_close(prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=TOKENS), expected)


def test_an_adapter_is_meant_by_name_or_by_being_active():
    model = adapted()
    model.add_adapter("other", CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    cache, before = prefill(base()), table(model)
    initialize_kv_prefix_from_past_key_values(model, adapter_name="other", past_key_values=cache, num_virtual_tokens=3)
    expected = prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=TOKENS)
    assert torch.equal(table(model, "other"), expected[:3])
    assert torch.equal(table(model), before)
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    assert torch.equal(table(model), expected)


def gemma():
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 6}
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads, layer_types=layers)).eval()


def refusals():
    long, short = prefill(base()), prefill(base(), TEXT[:, :3])
    two, other = prefill(base(), TEXT.repeat(2, 1)), prefill(base(num_hidden_layers=3))
    return {
        "too short": (short, {}, TaskError, "holds 3 tokens, and 5"),
        "two texts": (two, {}, TaskError, "one text"),
        "another model's": (other, {}, TaskError, "another model"),
        "slid away": (prefill(gemma()), {}, TaskError, "sliding window"),
        "empty": (DynamicCache(), {}, TaskError, "empty"),
        "nothing": (None, {}, TaskError, "NoneType"),
        "another number": (long, {"num_virtual_tokens": 4}, ConfigError, "is 4, and adapter 'default' has 5"),
        "no such adapter": (long, {"adapter_name": "nope"}, AdapterNameError, "nope"),
    }


@pytest.mark.parametrize("name", refusals())
def test_a_prefill_that_does_not_fit_leaves_the_adapter_as_it_was(name):
    cache, options, error, message = refusals()[name]
    model = adapted()
    before = table(model)
    with pytest.raises(error, match=message):
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache, **options)
    assert torch.equal(table(model), before)


def test_only_a_prefix_that_trains_itself_can_start_from_a_text(tokenizer):
    cache = prefill(base())
    seq2seq = get_peft_model(t5(), CartridgeConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=TOKENS))
    with pytest.raises(TaskError, match="without an encoder"):
        initialize_kv_prefix_from_text(seq2seq, tokenizer, text="w1 w2 w3 w4 w5")
    model = adapted()
    with pytest.raises(TaskError, match="gives 2 tokens, and the prefix has 5"):
        initialize_kv_prefix_from_text(model, tokenizer, text="w1 w2", use_chat_template=False)
    with pytest.raises(TaskError, match="gives 0 tokens"):
        initialize_kv_prefix_from_text(model, tokenizer, text="", use_chat_template=False)
    with pytest.raises(ConfigError, match="at least 1"):
        prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=0)
    model.base_model.tuner("default").encoder.prompt_encoder = torch.nn.Identity()
    with pytest.raises(TaskError, match="no adapter that holds keys and values itself"):
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)


# --------------------------------------------------------------------------------------------------- composing


def saved(path, **options):
    model = adapted(**options)
    model.save_pretrained(path)
    return table(model)


def test_composed_cartridges_stand_one_behind_the_other(tmp_path):
    tables = [saved(tmp_path / "a"), saved(tmp_path / "b", num_virtual_tokens=3)]
    compose_cartridge_adapters([tmp_path / "a", tmp_path / "b"], output_path=tmp_path / "both")
    model = PeftModel.from_pretrained(base(), tmp_path / "both", is_trainable=True)
    assert torch.equal(table(model), torch.cat(tables))
    encoder = model.base_model.tuner("default").encoder
    assert isinstance(encoder, CartridgeEncoder) and len(encoder.frozen_embedding) == 2


def test_what_does_not_go_together_is_not_composed(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "head", modules_to_save=["lm_head"])
    CartridgeConfig(num_virtual_tokens=2).save_pretrained(tmp_path / "empty")
    other = get_peft_model(base(num_hidden_layers=3), CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    other.save_pretrained(tmp_path / "deeper")
    paths = {"num_layers=3": "deeper", "modules to save": "head", "no adapter": "empty", "does not exist": "nothing"}
    for message, name in paths.items():
        with pytest.raises(CheckpointError, match=message):
            compose_cartridge_adapters([tmp_path / "a", tmp_path / name], output_path=tmp_path / "out")
    with pytest.raises(CheckpointError, match="Two cartridges at least"):
        compose_cartridge_adapters([tmp_path / "a"], output_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options",
    [{"num_frozen_tokens": -1}, {"num_frozen_tokens": 6}, {"num_frozen_tokens": 1.5}, {"num_virtual_tokens": None}],
    ids=str,
)
def test_a_config_that_asks_for_the_impossible_is_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        CartridgeConfig(**{"num_virtual_tokens": TOKENS, **options})


def test_a_model_that_the_method_cannot_serve_is_left_as_it_was():
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(TaskError):
        get_peft_model(plain, CartridgeConfig(num_virtual_tokens=TOKENS))
    assert list(plain._modules) == ["0"] and plain[0].weight.requires_grad
    model = bert()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match="token_dim"):
        get_peft_model(model, CartridgeConfig(task_type="SEQ_CLS", num_virtual_tokens=TOKENS, token_dim=3))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
