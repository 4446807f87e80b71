"""Multitask prompt tuning here and in HF PEFT."""

import pytest
import torch
from safetensors.torch import save_file

import peftcore
from peftcore.testing import Libraries, ParityCase
from peftcore.testing.models import bert, gpt2, llama, t5
from peftcore.testing.parity import check_same_distribution, save

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
TASKS = torch.tensor([2, 0])
MODELS = {
    "gpt2": (gpt2, {"labels": IDS}, "CAUSAL_LM"),
    "llama": (llama, {"labels": IDS}, "CAUSAL_LM"),
    "bert": (bert, {"labels": torch.tensor([0, 1])}, "SEQ_CLS"),
    "t5": (t5, {"labels": IDS}, "SEQ_2_SEQ_LM"),
}
SIZES = {"num_virtual_tokens": 3, "num_tasks": 3, "num_ranks": 2}


def libraries_for(architecture, **options):
    build, more, task = MODELS[architecture]
    inputs = {"input_ids": IDS, "attention_mask": MASK, **more}
    return Libraries(
        "multitask_prompt_tuning",
        ParityCase(build, inputs, {"task_type": task, **SIZES, **options}, model_scale=0.2),
    )


@torch.no_grad()
def check_same(libraries, one, other):
    inputs = libraries.case.inputs
    expected, actual = one(**inputs, task_ids=TASKS), other(**inputs, task_ids=TASKS)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-5)
    others = one(**inputs, task_ids=TASKS.flip(0)).logits
    assert (expected.logits[:, -1] - others[:, -1]).abs().max() > 1e-3  # the tasks differ
    check_same_generation(one, other)


def check_same_generation(one, other):
    if one.can_generate():
        asked = {"input_ids": IDS, "max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        asked.update(attention_mask=torch.ones_like(IDS), task_ids=TASKS)
        assert torch.equal(other.generate(**asked), one.generate(**asked))


@pytest.fixture(params=["gpt2", "llama", "bert"])
def libraries(request):
    return libraries_for(request.param)


def test_what_is_written_here_acts_the_same_there(libraries, tmp_path):
    ours = libraries.ours()
    save(ours, tmp_path)
    check_same(libraries, ours, libraries.load_there(tmp_path))


def test_what_is_written_there_acts_the_same_here(libraries, tmp_path):
    theirs = libraries.theirs()
    there = save(theirs, tmp_path / "there")
    ours = libraries.load_here(tmp_path / "there", is_trainable=True)
    here = save(ours, tmp_path / "here")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in there)
    check_same(libraries, theirs, ours)
    check_same(libraries, theirs, libraries.load_here(tmp_path / "there", low_cpu_mem_usage=True))


def test_of_t5_hf_peft_trains_both_parts_and_generates_with_the_encoder_alone(tmp_path):
    """The paper has the prompt in the encoder's input; here both calls do what injected_into says."""
    libraries = libraries_for("t5")
    theirs = libraries.theirs()
    save(theirs, tmp_path)
    config = peftcore.PeftConfig.from_pretrained(tmp_path)
    check_same_generation(theirs, libraries.load_here(tmp_path, config=config))
    config.injected_into = "both"
    ours, inputs = libraries.load_here(tmp_path, config=config), libraries.case.inputs
    expected, actual = theirs(**inputs, task_ids=TASKS), ours(**inputs, task_ids=TASKS)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
def test_both_start_from_a_source_alike(start, tmp_path):
    source = {
        "prompt_embeddings": torch.randn(3, 16),
        "prefix_task_cols": torch.randn(5, 3, 2),
        "prefix_task_rows": torch.randn(5, 2, 16),
    }
    save_file(source, tmp_path / "source.safetensors")
    options = {"prompt_tuning_init": start, "prompt_tuning_init_task": 3, "num_tasks": 1}
    libraries = libraries_for(
        "gpt2", **options, prompt_tuning_init_state_dict_path=str(tmp_path / "source.safetensors")
    )
    here, there = libraries.new_states()
    same = ["prompt_embeddings"] if start == "ONLY_SOURCE_SHARED" else source
    for name in same:
        assert torch.equal(here[name], there[name]), name


def test_both_start_from_one_distribution():
    libraries = libraries_for("llama", num_virtual_tokens=50, num_tasks=30, num_ranks=4)
    check_same_distribution(*libraries.new_states())
