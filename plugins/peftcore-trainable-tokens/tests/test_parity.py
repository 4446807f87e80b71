"""Trainable tokens here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import VOCABULARY, bert, gpt2, llama, t5

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
        return self.head(torch.tanh(self.embed_tokens(input_ids) + self.second(input_ids)))


class Scaled(nn.Embedding):
    """As in Gemma and Bart."""

    embed_scale = 4.0

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


def case(build, inputs=IDS, **options):
    return ParityCase(build, inputs, {"token_indices": TOKENS, **options}, model_scale=0.2)


class TestParity(ParityTests):
    method = "trainable_tokens"
    repeated = ("trainable_tokens_delta",)
    cases = {
        "words": case(Words),
        "padded": case(lambda: Words(padding_idx=TOKENS[1])),
        "normed": case(lambda: Words(max_norm=1.0)),
        "scaled": case(lambda: Words(Scaled)),
        "named": case(Words, target_modules=["second"]),
        "several": case(Words, target_modules=["second", "embed_tokens"]),
        "llama": case(lambda: llama(num_hidden_layers=1)),
        "llama, tied": case(lambda: llama(num_hidden_layers=1, tie_word_embeddings=True)),
        "gpt2": case(lambda: gpt2(n_layer=1)),
        "bert": case(bert),
        "t5": case(t5, {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}),
    }
    starts = {
        f"init_weights={init}": ParityCase(
            lambda: nn.Sequential(nn.Embedding(2000, 20)),
            options={"token_indices": list(range(5, 1505)), "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }

    def test_rows_start_as_the_frozen_ones(self, start):
        frozen = start.case.frozen()[0].weight[5:1505]
        for state in start.new_states():
            (rows,) = state.values()
            assert torch.equal(rows, frozen) == start.case.options["init_weights"]
