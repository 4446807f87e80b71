"""generate: what is refused, what comes out beside the sequences, and what others see of it while it runs."""

import pytest
import torch
from transformers import GenerationConfig

from peftcore.exceptions import TaskError

from .models import METHODS, build, continued, encoder, padded, prompted, same

BATCH = padded("left")
IDS, MASK = BATCH["input_ids"], BATCH["attention_mask"]


@pytest.mark.parametrize(
    "asked",
    [{"assistant_model": build("llama")}, {"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1}],
    ids=list,
)
@pytest.mark.parametrize("method", METHODS)
def test_assisted_decoding_is_refused(method, asked):
    model = prompted("llama", method)
    with pytest.raises(TaskError, match=rf"assisted decoding \({next(iter(asked))}\)"):
        continued(model, IDS[:1], **asked)
    if "prompt_lookup_num_tokens" in asked:
        with pytest.raises(TaskError, match="assisted decoding"):
            model.generate(IDS[:1], generation_config=GenerationConfig(**asked, max_new_tokens=2))
    with model.disable_adapter():
        if "assistant_early_exit" not in asked:
            assert continued(model, IDS[:1], new=2, **asked).shape == (1, 6)


def test_positions_are_refused():
    with pytest.raises(TaskError, match="leave position_ids out"):
        continued(prompted("llama"), **BATCH, position_ids=torch.arange(4)[None])


class Listener:
    """A streamer that notes what it is given."""

    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_a_streamer_hears_no_virtual_tokens(method, name):
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    for options in ({}, {"injected_into": "decoder"}) if name == "t5" and method == "prompt_tuning" else ({},):
        model, listener = prompted(name, method, task_type=task, **options), Listener()
        written = continued(model, IDS[:1], streamer=listener, new=4)
        assert listener.heard == written[0].tolist() and listener.ended


@pytest.mark.parametrize("method", METHODS)
def test_settings_may_come_from_a_config(method):
    model = prompted("llama", method)
    settings = GenerationConfig(max_new_tokens=5, num_beams=2, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = continued(model, **BATCH, new=5, num_beams=2)
    assert torch.equal(model.generate(**BATCH, generation_config=settings), expected)
    longest = GenerationConfig(max_length=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(model.generate(**BATCH, generation_config=longest), continued(model, **BATCH, new=5))
    assert longest.max_length == 9


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_new_tokens(method):
    model = prompted("llama", method)
    output = continued(model, **BATCH, return_dict_in_generate=True, output_scores=True, output_hidden_states=True)
    assert output.sequences.shape == (3, 10) and len(output.scores) == 6
    with torch.no_grad():
        expected = model(**BATCH).logits[:, -1]
    same(output.scores[0], expected)
    assert torch.equal(output.sequences, continued(model, **BATCH))


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_recognised_where_no_mask_is_given(method):
    """As the model does it by itself: ids that are the padding, if no sequence ends with it."""
    model = prompted("llama", method)
    plain = continued(build("llama"), **BATCH)
    assert torch.equal(
        continued(build("llama"), IDS, eos_token_id=1), continued(build("llama"), **BATCH, eos_token_id=1)
    )
    assert torch.equal(continued(model, IDS, eos_token_id=1), continued(model, **BATCH, eos_token_id=1))
    assert not torch.equal(continued(model, **BATCH), plain)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapters_are_as_before_when_generation_fails(method):
    model = prompted("llama", method)
    expected = continued(model, **BATCH)

    def fail(ids, scores):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        continued(model, **BATCH, logits_processor=[fail])
    assert torch.equal(continued(model, **BATCH), expected)
    assert model.base_model.call_state.prompted is None


@pytest.mark.parametrize("method", METHODS)
def test_logits_processors_see_as_many_tokens_as_the_sequence_has_places(method):
    """Ids stand for virtual tokens while generation runs: the row's first, so that repetition penalties stay quiet."""
    model, seen = prompted("llama", method), []

    def look(ids, scores):
        seen.append(ids.clone())
        return scores

    continued(model, IDS[:1], new=1, logits_processor=[look])
    assert set(seen[0][0].tolist()) == set(IDS[0].tolist())


def test_sampling_with_several_sequences_gives_each_row_its_own():
    model = prompted("llama")
    torch.manual_seed(3)
    written = continued(model, **BATCH, do_sample=True, num_return_sequences=3, top_k=0)
    assert written.shape == (9, 10)
    assert torch.equal(written[:, :4], IDS.repeat_interleave(3, 0))


@pytest.mark.parametrize("method", METHODS)
def test_generation_in_training_mode_and_in_half_precision(method):
    model = prompted("llama", method)
    model.get_base_model().to(torch.bfloat16)
    assert encoder(model).prompt_embeddings.dtype == torch.float32
    assert continued(model, **BATCH).shape == (3, 10)
    assert continued(model.train(), **BATCH).shape == (3, 10)
    output = model(**BATCH, labels=IDS)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16 and encoder(model).prompt_embeddings.grad.any()
