"""Models with an encoder and a decoder: which part gets virtual tokens, and what follows for the other."""

import pytest
import torch

from peftcore.exceptions import TaskError

from .models import TOKENS, build, continued, different, encoder, logits, padded, prompted, same

BATCH = padded("right")
LABELS = torch.tensor([[5, 6, 7], [8, 9, 2], [3, 3, 4]])
NAMES = ("t5", "bart")
PLACES = ("encoder", "decoder", "both")


def made(name, place="encoder", method="prompt_tuning", **options):
    return prompted(name, method, task_type="SEQ_2_SEQ_LM", injected_into=place, **options)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_virtual_embeddings_stand_where_they_are_asked_for(name, place):
    """As the frozen model makes of embeddings that were put together by hand."""
    model, frozen = made(name, place), build(name)
    ids, start = torch.tensor([TOKENS[0]]), frozen.prepare_decoder_input_ids_from_labels(LABELS[:1])
    parts = encoder(model).prompt_embeddings[None].chunk(2, 1)
    embed = frozen.get_input_embeddings()
    given = {"input_ids": ids, "decoder_input_ids": start}
    if place != "decoder":
        given = {"inputs_embeds": torch.cat([parts[0], embed(ids)], 1), "decoder_input_ids": start}
    if place != "encoder":
        del given["decoder_input_ids"]
        given["decoder_inputs_embeds"] = torch.cat([parts[1], embed(start)], 1)
    expected = logits(frozen, **given)
    same(logits(model, input_ids=ids, labels=LABELS[:1]), expected)
    same(logits(model, input_ids=ids, decoder_input_ids=start), expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_its_rows(name, place):
    model = made(name, place)
    output = logits(model, **BATCH, labels=LABELS)
    for row, tokens in enumerate(TOKENS):
        same(output[row], logits(model, input_ids=torch.tensor([tokens]), labels=LABELS[row : row + 1])[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_goes_to_the_decoder(name, side):
    model = made(name, method="prefix_tuning")
    batch = padded("right")
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    output = logits(model, **batch, decoder_input_ids=LABELS, decoder_attention_mask=mask)
    for row, tokens in enumerate(TOKENS):
        length = 3 - row
        alone = logits(model, input_ids=torch.tensor([tokens]), decoder_input_ids=LABELS[row : row + 1, :length])
        same(output[row, :length], alone[0])
    assert different(output, logits(build(name), **batch, decoder_input_ids=LABELS, decoder_attention_mask=mask))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_tokens(name, place):
    model = made(name, place)
    with torch.no_grad():
        output = model(**BATCH, labels=LABELS)
    assert output.logits.shape[1] == (3 if place == "encoder" else 6)
    expected = torch.nn.functional.cross_entropy(output.logits[:, -3:].flatten(0, 1), LABELS.flatten())
    same(output.loss, expected)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
@pytest.mark.parametrize("place", [*PLACES, "prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written(name, place, settings):
    model = made(name, method="prefix_tuning") if place == "prefix" else made(name, place)
    written = continued(model, **BATCH, **settings)
    for row, tokens in enumerate(TOKENS):
        ids = torch.tensor([tokens])
        assert torch.equal(written[row], continued(model, ids, **settings)[0])
        if "num_beams" in settings:
            continue
        step = torch.tensor([[model.generation_config.decoder_start_token_id]])
        for _ in range(6):
            step = torch.cat([step, logits(model, input_ids=ids, decoder_input_ids=step)[:, -1:].argmax(-1)], 1)
        if name != "bart":  # whose generation forces the last token
            assert torch.equal(written[row], step[0])


@pytest.mark.parametrize("place", [*PLACES, "prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_goes_on_from_what_the_decoder_is_given(name, place):
    model = made(name, method="prefix_tuning") if place == "prefix" else made(name, place)
    begun = torch.tensor([[model.generation_config.decoder_start_token_id, 5, 6]]).expand(3, -1)
    written = continued(model, **BATCH, decoder_input_ids=begun, new=1)
    expected = logits(model, **BATCH, decoder_input_ids=begun)[:, -1].argmax(-1)
    assert torch.equal(written[:, :3], begun)
    if name != "bart":
        assert torch.equal(written[:, 3], expected)
    masked = continued(model, **BATCH, decoder_input_ids=begun, decoder_attention_mask=torch.ones_like(begun), new=1)
    assert torch.equal(masked, written)
    # What does not begin with the decoder's first token is given it.
    ones = torch.ones_like(begun[:, 1:])
    for mask in ({}, {"decoder_attention_mask": ones}):
        assert torch.equal(continued(model, **BATCH, decoder_input_ids=begun[:, 1:], **mask, new=1), written)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_encoder_has_made_can_be_given(name):
    model = made(name)
    with torch.no_grad():
        whole = model(**BATCH, labels=LABELS)
    again = logits(
        model,
        encoder_outputs=(whole.encoder_last_hidden_state,),
        attention_mask=BATCH["attention_mask"],
        labels=LABELS,
    )
    same(again, whole.logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_goes_on_from_its_cache(name):
    start = torch.tensor([[2, 5, 6, 7]]).expand(3, -1)
    for place in (*PLACES, "prefix"):
        model = made(name, method="prefix_tuning") if place == "prefix" else made(name, place)
        with torch.no_grad():
            first = model(**BATCH, decoder_input_ids=start[:, :2], use_cache=True)
        rest = logits(
            model,
            encoder_outputs=(first.encoder_last_hidden_state,),
            attention_mask=BATCH["attention_mask"],
            decoder_input_ids=start[:, 2:],
            past_key_values=first.past_key_values,
        )
        same(rest, logits(model, **BATCH, decoder_input_ids=start)[:, -2:])


@pytest.mark.parametrize("name", NAMES)
def test_sub_modules_for_one_part_have_one_part_s_tokens(name):
    for place in PLACES:
        model = made(name, place, num_transformer_submodules=1)
        assert encoder(model).prompt_embeddings.shape == (3, 16)
        assert torch.isfinite(logits(model, **BATCH, labels=LABELS)).all()
        assert encoder(made(name, place)).prompt_embeddings.shape == (6, 16)
    prefix = made(name, method="prefix_tuning", num_transformer_submodules=1)
    assert different(
        logits(prefix, **BATCH, labels=LABELS),
        logits(made(name, method="prefix_tuning"), **BATCH, labels=LABELS),
    )


def test_sound_takes_a_prefix_and_no_virtual_embeddings_in_its_encoder():
    """HF PEFT calls Whisper with ids, which it does not take."""
    sound = {"input_features": torch.linspace(-1, 1, 48).sin().reshape(1, 4, 12)}
    prefix = made("whisper", method="prefix_tuning")
    assert different(logits(prefix, **sound, labels=LABELS[:1]), logits(build("whisper"), **sound, labels=LABELS[:1]))
    with pytest.raises(TaskError, match="neither input_ids nor inputs_embeds"):
        made("whisper")(**sound, labels=LABELS[:1])
    decoder = made("whisper", "decoder")
    assert logits(decoder, **sound, decoder_input_ids=LABELS[:1]).shape[1] == 6
    step = torch.tensor([[prefix.generation_config.decoder_start_token_id]])
    for _ in range(4):
        step = torch.cat([step, logits(prefix, **sound, decoder_input_ids=step)[:, -1:].argmax(-1)], 1)
    assert torch.equal(continued(prefix, **sound, new=4), step[:, 1:])
