"""What trainable tokens train, share and refuse."""

import pytest
import torch
from torch import nn

import peftcore
import peftcore_trainable_tokens
from peftcore import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import ConfigError, TargetError
from peftcore_trainable_tokens import TrainableTokensConfig

IDS = torch.tensor([[0, 3, 5, 3], [9, 1, 5, 10]])
TOKENS = [5, 0, 9]


class Words(nn.Module):
    """A model with an embedding of its own, whose weight the head shares, and a second embedding."""

    def __init__(self, tied=True):
        super().__init__()
        torch.manual_seed(0)
        self.positions = nn.Embedding(4, 6)
        self.words = nn.Embedding(11, 6)
        self.lin = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)
        if tied:
            self.head.weight = self.words.weight

    def get_input_embeddings(self):
        return self.words

    def forward(self, ids):
        hidden = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.lin(hidden)))


def adapted(model=None, **options):
    model = get_peft_model(model or Words(), TrainableTokensConfig(**{"token_indices": TOKENS, **options}))
    return stir(model.eval())


def stir(model, seed=1):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng))
    return model


def test_the_core_finds_the_method_and_its_names():
    method = peftcore_trainable_tokens.register_peft_method()
    assert (method.name, method.prefix) == ("trainable_tokens", "trainable_tokens_")
    assert peftcore.TrainableTokensConfig is TrainableTokensConfig


@pytest.mark.parametrize("tied", [False, True])
def test_their_rows_act_and_no_others(tied):
    words = Words(tied)
    table, head = words.words.weight.detach().clone(), words.head.weight.detach().clone()
    model = adapted(words)
    changed = table.clone()
    changed[TOKENS] = get_peft_model_state_dict(model)["base_model.model.words.trainable_tokens_delta"]
    expected = Words(tied=False)
    expected.load_state_dict({**Words(tied).state_dict(), "words.weight": changed, "head.weight": head})
    if tied:
        expected.head.weight = expected.words.weight
    torch.testing.assert_close(model(IDS), expected(IDS))
    assert not torch.allclose(model(IDS), Words(tied)(IDS), atol=1e-2)
    assert torch.equal(words.words.base_layer.weight, table)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_merged_for_good_the_weight_is_still_one(tied):
    model = adapted(Words(tied))
    expected = model(IDS)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS), expected)
    assert (merged.head.weight is merged.words.weight) is tied


def test_training_moves_the_rows_alone():
    words = Words()
    before = {name: value.clone() for name, value in words.state_dict().items()}
    model = get_peft_model(words, TrainableTokensConfig(token_indices=TOKENS))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    restored = model.unload()
    assert all(torch.equal(value, before[name]) for name, value in restored.state_dict().items())
    assert restored.head.weight is restored.words.weight


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["words"]},
        {"target_modules": "words"},
        {"exclude_modules": ["positions"]},
        {"ensure_weight_tying": True},
    ],
    ids=str,
)
def test_ways_to_name_one_embedding(options):
    assert torch.equal(adapted(**options)(IDS), adapted()(IDS))


def test_two_embeddings_that_store_one_weight_train_one_set_of_rows():
    words = Words()
    words.positions = nn.Embedding(11, 6)
    words.positions.weight = words.words.weight
    model = adapted(words, target_modules=["words", "positions"])
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 1
    torch.testing.assert_close(words.positions(torch.tensor([5, 1])), words.words(torch.tensor([5, 1])))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back(tied, low_cpu_mem_usage, tmp_path):
    model = adapted(Words(tied))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Words(tied), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True)
    torch.testing.assert_close(loaded(IDS), model(IDS))
    assert sum(parameter.requires_grad for parameter in loaded.parameters()) == 1
    # The head goes on showing the embedding's rows.
    torch.testing.assert_close(stir(loaded, 2)(IDS), stir(model, 2)(IDS))


def test_the_file_holds_the_rows_once():
    assert list(get_peft_model_state_dict(adapted())) == ["base_model.model.words.trainable_tokens_delta"]


def test_beside_another_method_in_the_order_of_activation():
    model = get_peft_model(Words(False), LoraConfig(r=2, target_modules=["words"], init_lora_weights=False), "lora")
    model.add_adapter("rows", TrainableTokensConfig(token_indices=TOKENS))
    model.set_adapter("rows")
    stir(model)
    layer, token = model.base_model.model.words, torch.tensor([5])
    rows = layer(token)
    model.set_adapter(["lora", "rows"])
    torch.testing.assert_close(layer(token), rows)
    model.set_adapter(["rows", "lora"])
    delta = layer.adapters["lora"].delta_weight()[:, 5]
    torch.testing.assert_close(layer(token), rows + delta)
    expected = model(IDS)
    model.merge_adapter()
    torch.testing.assert_close(model(IDS), expected)


def test_the_rows_start_from_the_frozen_weight_also_while_something_is_merged():
    model = adapted(token_indices=[1, 5])
    model.merge_adapter()
    model.add_adapter("rows", TrainableTokensConfig(token_indices=TOKENS))
    rows = get_peft_model_state_dict(model, adapter_name="rows")["base_model.model.words.trainable_tokens_delta"]
    assert torch.equal(rows, Words().words.weight[TOKENS])


@pytest.mark.parametrize("tokens", [[-1], [1, 1], ["a"], [1.0], 3, None, (1,)], ids=repr)
def test_tokens_that_are_none_are_refused_when_the_config_is_made(tokens):
    with pytest.raises(ConfigError, match="token_indices"):
        TrainableTokensConfig(token_indices=tokens)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"token_indices": []}, ConfigError, "token_indices: names no token"),
        ({"token_indices": [3, 11]}, TargetError, "below 11"),
        ({"token_indices": [5], "target_modules": ["words", "positions"]}, TargetError, "below 4"),
        ({"target_modules": ["lin"]}, TargetError, "Linear"),
        ({"target_modules": ["wordz"]}, TargetError, "words"),
        ({"trainable_token_indices": [1]}, ConfigError, "words is adapted"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_model_changes_nothing(options, error, words):
    model = Words()
    modules, values = list(model.modules()), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        get_peft_model(model, TrainableTokensConfig(**{"token_indices": [2], **options}))
    assert list(model.modules()) == modules
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_an_embedding_is_told_what_to_do():
    with pytest.raises(TargetError, match="embed_tokens"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), TrainableTokensConfig(token_indices=[1]))
