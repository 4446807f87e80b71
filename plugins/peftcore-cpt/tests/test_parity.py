"""Context-aware prompt tuning here and in HF PEFT."""

import pytest
import torch

from peftcore.testing import Libraries, ParityCase
from peftcore.testing.models import gpt2, llama
from peftcore.testing.parity import save

IDS = torch.tensor([[3, 4, 5, 6, 8], [7, 8, 9, 2, 4]])
LABELS = torch.tensor([[-100, 4, 5, 6, 8], [7, -100, 9, 4, -100]])
TYPES = torch.tensor([[1, 2, 3, 4, 4], [1, 2, 3, 4, 0]])
CONTEXT = {
    "cpt_token_ids": [3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    "cpt_mask": [1] * 10,
    "cpt_tokens_type_mask": [0, 1, 2, 3, 4, 5, 6, 7, 8, 8],
    "opt_projection_epsilon": 3.0,
    "opt_projection_format_epsilon": 2.0,
}
MODELS = {"gpt2": lambda: gpt2(n_positions=32), "llama": llama}
LOSSES = {
    "plain": {},
    "decay": {"opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.7},
    "other radii": {"opt_projection_epsilon": 0.1, "opt_projection_format_epsilon": 5.0},
}


def libraries_for(architecture, loss="plain", **options):
    config = {"task_type": "CAUSAL_LM", **CONTEXT, **LOSSES[loss], **options}
    return Libraries("cpt", ParityCase(MODELS[architecture], {"input_ids": IDS}, config, model_scale=0.2))


def delta_here(model):
    return model.base_model.prompt_encoder["default"].delta_embeddings


def delta_there(model):
    return model.prompt_encoder["default"].delta_embedding.weight


def check_same(libraries, one, other):
    expected, actual = (libraries.case.answer(model) for model in (one, other))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        unmoved = libraries.case.answer(libraries.ours(perturbed=False))
    assert (expected - unmoved).abs().max() > 1e-3  # training has an effect
    asked = {"input_ids": IDS, "max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    asked["attention_mask"] = torch.ones_like(IDS)
    assert torch.equal(other.generate(**asked), one.generate(**asked))


@pytest.fixture(params=[(model, loss) for model in MODELS for loss in LOSSES], ids=" ".join)
def libraries(request):
    return libraries_for(*request.param)


def test_what_is_written_here_acts_the_same_there(libraries, tmp_path):
    ours = libraries.ours()
    save(ours, tmp_path)
    check_same(libraries, ours, libraries.load_there(tmp_path))


@pytest.mark.parametrize("kwargs", [{}, {"is_trainable": True}, {"low_cpu_mem_usage": True}], ids=str)
def test_what_is_written_there_acts_the_same_here(libraries, kwargs, tmp_path):
    theirs = libraries.theirs()
    save(theirs, tmp_path)
    check_same(libraries, theirs, libraries.load_here(tmp_path, **kwargs))


@pytest.mark.parametrize("types", [TYPES, None, torch.zeros_like(TYPES)], ids=["types", "no types", "no label"])
def test_loss_gradients_and_steps_are_the_same(libraries, types):
    """HF PEFT changes the type mask that it is given, so it gets a copy."""
    ours, theirs = libraries.ours(perturbed=False), libraries.theirs(perturbed=False)
    optimizers = [torch.optim.SGD([delta], lr=0.5) for delta in (delta_here(ours), delta_there(theirs))]
    for _ in range(3):
        losses = []
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            more = {} if types is None else {"input_type_mask": types.clone()}
            losses.append(model(input_ids=IDS, labels=LABELS, **more).loss)
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(delta_here(ours).grad, delta_there(theirs).grad, rtol=1e-5, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    check_tables = (ours.base_model.prompt_encoder["default"].embeddings, theirs.get_prompt)
    here, there = check_tables[0](None), check_tables[1](1)[0]
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("types", [[1, 2, 3, 4, 5, 6], [1, 2, 3]], ids=str)
def test_of_a_context_that_ends_within_an_example_hf_peft_mistakes_the_types_behind(types):
    """It adds the last type as it is, so labels of the input are none any more; here examples begin anew."""
    number = len(types)
    options = {"cpt_token_ids": list(range(3, 3 + number)), "cpt_mask": [1] * number, "cpt_tokens_type_mask": types}
    libraries = libraries_for("gpt2", **options)
    whole = libraries_for("gpt2", **{**options, "cpt_tokens_type_mask": [*types[:-1], types[-1] | 3]})
    call = {"input_ids": IDS, "labels": LABELS}
    ours = libraries.ours(perturbed=False)(**call, input_type_mask=TYPES.clone()).loss
    theirs = libraries.theirs(perturbed=False)(**call, input_type_mask=TYPES.clone()).loss
    assert (ours - theirs).abs() > 1e-3
    assert torch.equal(ours, whole.ours(perturbed=False)(**call, input_type_mask=TYPES.clone()).loss)


def test_hf_peft_shows_tokens_that_the_mask_hides():
    """Here they are left out, as if they were not in the context."""
    hidden = libraries_for("llama", cpt_mask=[0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    shown, answer = libraries_for("llama"), hidden.case.answer
    assert torch.equal(answer(hidden.theirs(perturbed=False)), answer(shown.theirs(perturbed=False)))
    shorter = {name: CONTEXT[name][1:] for name in ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask")}
    without = libraries_for("llama", **shorter)
    torch.testing.assert_close(answer(hidden.ours(perturbed=False)), answer(without.theirs(perturbed=False)))
