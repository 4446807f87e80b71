"""The same adapter in HF PEFT: files travel both ways, outputs are equal."""

import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import peftcore
from peftcore_trainable_tokens import TrainableTokensConfig

torch.set_num_threads(1)
VOCABULARY = 30
IDS = torch.randint(2, VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(2))
TOKENS = [*sorted(set(IDS.flatten().tolist()))[::3], 0]


class Words(nn.Module):
    """A model that names no embedding as its own."""

    def __init__(self, embedding=nn.Embedding, **options):
        super().__init__()
        self.embed_tokens = embedding(VOCABULARY, 8, **options)
        self.second = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids):
        return (self.head(torch.tanh(self.embed_tokens(input_ids) + self.second(input_ids))),)


class Scaled(nn.Embedding):
    """As in Gemma and Bart."""

    embed_scale = 4.0

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


def llama(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **options))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=1, n_head=2))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes))


CASES = {
    "words": (Words, {}),
    "padded": (lambda: Words(padding_idx=TOKENS[1]), {}),
    "normed": (lambda: Words(max_norm=1.0), {}),
    "scaled": (lambda: Words(Scaled), {}),
    "named": (Words, {"target_modules": ["second"]}),
    "several": (Words, {"target_modules": ["second", "embed_tokens"]}),
    "llama": (llama, {}),
    "llama-tied": (lambda: llama(tie_word_embeddings=True), {}),
    "gpt2": (gpt2, {}),
    "bert": (bert, {}),
    "t5": (t5, {}),
}


def build(case):
    torch.manual_seed(0)
    model = CASES[case][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def answer(model):
    more = {"decoder_input_ids": IDS[:, :4]} if "T5" in str(type(model.base_model.model)) else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more)[0]


def adapted(library, case):
    """Return the model as a library adapts it, the rows away from where they started."""
    config = (TrainableTokensConfig if library is peftcore else peft.TrainableTokensConfig)(
        token_indices=TOKENS, **CASES[case][1]
    )
    model = library.get_peft_model(build(case), config).eval()
    stir(model)
    return model


def stir(model):
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.5)


def same_everywhere(one, other):
    """Check that outputs are equal, before and after merging, and not the frozen model's."""
    expected = answer(one)
    with one.disable_adapter():
        assert (expected - answer(one)).abs().max() > 0.01
    equal(answer(other), expected)
    for model in (one, other):
        model.merge_adapter()
        equal(answer(model), expected)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize("case", CASES)
def test_hf_peft_reads_what_is_written_here(case, tmp_path):
    ours = adapted(peftcore, case)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")
        theirs = peft.PeftModel.from_pretrained(build(case), tmp_path).eval()
    same_everywhere(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_what_hf_peft_writes_is_read_here(case, tmp_path):
    theirs = adapted(peft, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    same_everywhere(theirs, peftcore.PeftModel.from_pretrained(build(case), tmp_path).eval())


@pytest.mark.parametrize("case", CASES)
def test_states_travel_between_models(case):
    theirs, ours = adapted(peft, case), adapted(peftcore, case)
    stir(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peftcore.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs, save_embedding_layers=False))
    equal(answer(ours), answer(theirs))


def test_both_start_from_one_distribution():
    for library, config_cls in ((peftcore, TrainableTokensConfig), (peft, peft.TrainableTokensConfig)):
        for init in (True, False):
            base = nn.Sequential(nn.Embedding(2000, 20))
            frozen = base[0].weight.detach().clone()
            config = config_cls(token_indices=list(range(5, 1505)), target_modules=["0"], init_weights=init)
            (rows,) = library.get_peft_model_state_dict(library.get_peft_model(base, config)).values()
            if init:
                assert torch.equal(rows, frozen[5:1505])
            else:
                marks = torch.linspace(0.01, 0.99, 9)
                expected = torch.distributions.Normal(0, 1).icdf(marks)
                torch.testing.assert_close(rows.flatten().quantile(marks), expected, atol=0.1, rtol=0)


def test_the_config_has_hf_peft_s_fields_and_defaults():
    ours, theirs = TrainableTokensConfig(), peft.TrainableTokensConfig()
    expected = {**theirs.__dict__, "peft_version": None}
    assert {name: getattr(ours, name) for name in expected} == expected
    assert set(ours.to_dict()) <= set(theirs.to_dict())
