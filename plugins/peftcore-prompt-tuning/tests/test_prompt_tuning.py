"""Where virtual tokens start, and what is refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import peftcore
from peftcore import get_peft_model
from peftcore.exceptions import CheckpointError, ConfigError, TaskError
from peftcore.testing import Snapshot
from peftcore.testing.models import bert, gpt2, llama, t5
from peftcore_prompt_tuning import PromptTuningConfig, PromptTuningInit

WORDS = ["never", "odd", "or", "even"]
IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def tokenizer(tmp_path):
    """The path of a tokenizer that knows four words, whose ids are 0 to 3."""
    known = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="or"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=known).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def table(model):
    return peftcore.get_peft_model_state_dict(model)["prompt_embeddings"]


@pytest.mark.parametrize(("tokens", "ids"), [(2, [1, 3]), (3, [1, 3, 0]), (5, [1, 3, 0, 1, 3])])
def test_a_text_is_repeated_or_cut(tokenizer, tokens, ids):
    base = gpt2()
    config = PromptTuningConfig(
        num_virtual_tokens=tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="odd even never",
        tokenizer_name_or_path=tokenizer,
    )
    assert torch.equal(table(get_peft_model(base, config)), base.get_input_embeddings().weight[ids])


def test_a_text_fills_both_tables_of_an_encoder_decoder_model(tokenizer):
    base = t5()
    config = PromptTuningConfig(
        num_virtual_tokens=2,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text="odd even never",
        tokenizer_name_or_path=tokenizer,
        tokenizer_kwargs={"use_fast": True},
    )
    assert torch.equal(table(get_peft_model(base, config)), base.get_input_embeddings().weight[[1, 3, 0, 1]])


def test_tokens_are_drawn_from_the_vocabulary():
    base = llama()
    words = base.get_input_embeddings().weight.detach().clone()
    config = PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB")
    start = table(get_peft_model(base, config))
    same = (start[:, None] == words).all(2)
    assert same.any(1).all() and same.any(0).sum() > 8


def test_they_train_and_the_model_does_not():
    model = get_peft_model(gpt2(), PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB"))
    before = table(model).clone()
    words = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert (table(model) != before).any(1).all()
    assert torch.equal(model.get_input_embeddings().weight, words)


def test_a_file_trains_on_from_where_it_was(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(gpt2(), PromptTuningConfig(num_virtual_tokens=3)).eval()
    frozen = {name: value.clone() for name, value in model.get_base_model().state_dict().items()}
    model.save_pretrained(tmp_path)
    other = gpt2()
    other.load_state_dict(frozen)
    again = peftcore.PeftModel.from_pretrained(other, tmp_path, is_trainable=True).eval()
    for one in (model, again):
        optimizer = torch.optim.Adam([p for p in one.parameters() if p.requires_grad], lr=0.1)
        one(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert torch.equal(table(again), table(model))


def test_with_gradient_checkpointing_gradients_are_the_same():
    torch.manual_seed(0)
    model = get_peft_model(llama(), PromptTuningConfig(num_virtual_tokens=3)).train()
    (parameter,) = (p for p in model.parameters() if p.requires_grad)
    gradients = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        parameter.grad = None
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append(parameter.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].any(1).all()


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_virtual_tokens": None}, "num_virtual_tokens: has to be given"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"prompt_tuning_init": "ELSEWHERE"}, "prompt_tuning_init"),
        ({"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text"),
        ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}, "tokenizer_name_or_path"),
        ({"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "a"}, "prompt_tuning_init_text"),
        ({"tokenizer_kwargs": {"use_fast": True}}, "tokenizer_kwargs"),
        ({"injected_into": "head"}, "injected_into"),
        ({"num_transformer_submodules": 3}, "num_transformer_submodules"),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options, field):
    with pytest.raises(ConfigError, match=rf"PromptTuningConfig\.{field}"):
        PromptTuningConfig(**{"num_virtual_tokens": 3, **options})


class WithoutEmbeddings(nn.Module):
    """A model of layers alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("build", "options", "error", "problem"),
    [
        (WithoutEmbeddings, {}, TaskError, "WithoutEmbeddings has no config"),
        (gpt2, {"num_virtual_tokens": 16}, ConfigError, "num_virtual_tokens: is 16, and the model has 16 positions"),
        (gpt2, {"token_dim": 8}, ConfigError, "token_dim: is 8, and the model's is 16"),
        (gpt2, {"num_transformer_submodules": 2}, ConfigError, "num_transformer_submodules: can be 2 for an encoder-"),
        (gpt2, {"task_type": "SEQ_CLS"}, TaskError, "classifier or score.*GPT2LMHeadModel has none"),
        (
            gpt2,
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a", "tokenizer_name_or_path": "./nowhere"},
            ConfigError,
            "'./nowhere' can't be loaded",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_what_a_model_has_no_place_for_leaves_it_as_it_was(build, options, error, problem):
    model = build()
    before = Snapshot.of(model)
    with pytest.raises(error, match=problem):
        get_peft_model(model, PromptTuningConfig(**{"num_virtual_tokens": 3, **options}))
    before.assert_same(model, "get_peft_model was refused", "Is something put in before all is checked?")


def test_a_text_without_any_token_is_refused(tokenizer):
    model = gpt2()
    before = Snapshot.of(model)
    config = PromptTuningConfig(
        num_virtual_tokens=2,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=" ",
        tokenizer_name_or_path=tokenizer,
    )
    with pytest.raises(ConfigError, match="gives no token"):
        get_peft_model(model, config)
    before.assert_same(model, "get_peft_model was refused", "")


@pytest.mark.parametrize("options", [{"n_embd": 32}, {}], ids=["another model's", "another number"])
def test_a_checkpoint_of_another_size_is_refused(options, tmp_path):
    get_peft_model(gpt2(**options), PromptTuningConfig(num_virtual_tokens=3)).save_pretrained(tmp_path)
    model = gpt2()
    before = Snapshot.of(model)
    config = None if options else PromptTuningConfig(num_virtual_tokens=4)
    error, problem = (
        (ConfigError, "token_dim: is 32") if options else (CheckpointError, r"\[3, 16\] in the file, \[4, 16\]")
    )
    with pytest.raises(error, match=problem):
        peftcore.PeftModel.from_pretrained(model, tmp_path, config=config)
    before.assert_same(model, "from_pretrained was refused", "")


def test_an_encoder_without_a_cache_takes_them_too():
    model = get_peft_model(bert(), PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"))
    assert model(input_ids=IDS).logits.shape == (1, 2)
