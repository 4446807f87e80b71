"""Multitask prompt tuning: tasks of rows, where it starts, and what it refuses."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError, TaskError
from peftcore.testing.models import llama, t5
from peftcore.testing.trials import perturb, seeded
from peftcore_multitask_prompt_tuning import MultitaskPromptTuningConfig

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2], [3, 3, 1, 2]])
TASKS = torch.tensor([2, 0, 1])


def frozen():
    with seeded(0):
        return llama()


def config(**options):
    sizes = {"num_virtual_tokens": 3, "num_tasks": 3, "num_ranks": 2}
    return MultitaskPromptTuningConfig(**{"task_type": "CAUSAL_LM", **sizes, **options})


def prompted(**options):
    with seeded(1):
        model = get_peft_model(frozen(), config(**options)).eval()
        perturb(model, scale=0.5)
    return model


def answer(model, rows=slice(None), **kwargs):
    with torch.no_grad():
        return model(input_ids=IDS[rows], **kwargs).logits


def test_the_prompt_of_a_task_is_the_product_of_the_paper():
    model = prompted()
    state = get_peft_model_state_dict(model)
    with torch.no_grad():
        words = model.get_base_model().model.embed_tokens(IDS)
    task = state["prefix_task_cols"][TASKS] @ state["prefix_task_rows"][TASKS]
    with torch.no_grad():
        expected = model.get_base_model()(inputs_embeds=torch.cat([state["prompt_embeddings"] * task, words], 1)).logits
    torch.testing.assert_close(answer(model, task_ids=TASKS), expected)


def test_each_row_has_its_task():
    model = prompted()
    together = answer(model, task_ids=TASKS)
    for row, task in enumerate(TASKS):
        alone = answer(model, slice(row, row + 1), task_ids=task[None])
        torch.testing.assert_close(together[row : row + 1], alone)
    asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    generated = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), task_ids=TASKS, **asked)
    for row, task in enumerate(TASKS):
        ids = IDS[row : row + 1]
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=task[None], **asked)
        assert torch.equal(generated[row : row + 1], alone)


@pytest.mark.parametrize("one", [1, torch.tensor(1), torch.tensor([1]), torch.tensor([1], dtype=torch.int32)])
def test_one_task_may_stand_for_all_rows(one):
    model = prompted()
    assert torch.equal(answer(model, task_ids=one), answer(model, task_ids=torch.tensor([1, 1, 1])))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_task_ids_may_be_integers_of_any_size(dtype):
    model = prompted()
    assert torch.equal(answer(model, task_ids=TASKS.to(dtype)), answer(model, task_ids=TASKS))


def test_rows_of_a_mixed_batch_have_tasks_of_their_own():
    model = prompted()
    with seeded(2):
        model.add_adapter("other", config(num_virtual_tokens=2, num_tasks=2))
    names = ["other", "__base__", "default"]
    together = answer(model, adapter_names=names, task_ids=torch.tensor([1, 9, 2]))[:, -1]  # nobody asks the 9
    model.set_adapter("other")
    torch.testing.assert_close(together[:1], answer(model, slice(0, 1), task_ids=torch.tensor([1]))[:, -1])
    model.set_adapter("default")
    torch.testing.assert_close(together[2:], answer(model, slice(2, 3), task_ids=torch.tensor([2]))[:, -1])
    with model.disable_adapter():
        torch.testing.assert_close(together[1:2], answer(model, slice(1, 2))[:, -1])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, "needs task_ids"),
        (torch.tensor([0, 1, 3]), r"task_ids \[3\] are none of the adapter's 3 tasks"),
        (torch.tensor([0, -1, 2]), r"task_ids \[-1\]"),
        (torch.tensor([0, 1]), "one for each of the 3 rows"),
        (torch.tensor([0.0, 1.0, 2.0]), "integers"),
        (torch.tensor([True, False, True]), "integers"),
        (True, "integers"),
        ([0, 1, 2], "a tensor"),
    ],
)
def test_what_task_ids_may_not_be(tasks, message):
    model = prompted()
    asked = {} if tasks is None else {"task_ids": tasks}
    with pytest.raises(TaskError, match=message):
        answer(model, **asked)
    with pytest.raises(TaskError, match=message):
        model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **asked)
    answer(model, task_ids=TASKS)  # nothing is left behind


def test_training_goes_on_from_a_file(tmp_path):
    def train(model):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        model(input_ids=IDS, labels=IDS, task_ids=TASKS).loss.backward()
        optimizer.step()
        return get_peft_model_state_dict(model)

    model = prompted()
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(frozen(), tmp_path, is_trainable=True)
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    ours, theirs = train(model), train(resumed)
    assert all(torch.equal(ours[name], theirs[name]) and not torch.equal(ours[name], before[name]) for name in before)


class TestStarts:
    SOURCE = {
        "prompt_embeddings": torch.arange(48.0).reshape(3, 16),
        "prefix_task_cols": torch.arange(30.0).reshape(5, 3, 2),
        "prefix_task_rows": torch.arange(160.0).reshape(5, 2, 16),
    }

    def start(self, path, init="EXACT_SOURCE_TASK", **options):
        options = {"prompt_tuning_init": init, "prompt_tuning_init_state_dict_path": str(path), **options}
        return get_peft_model_state_dict(get_peft_model(frozen(), config(**options)))

    def written(self, tmp_path, **tensors):
        path = tmp_path / "source.safetensors"
        save_file({**self.SOURCE, **tensors}, path)
        return path

    def test_from_a_source_each_task_begins_alike(self, tmp_path):
        path = self.written(tmp_path)
        state = self.start(path, prompt_tuning_init_task=4)
        for name in ("prefix_task_cols", "prefix_task_rows"):
            assert torch.equal(state[name], self.SOURCE[name][4].expand(3, -1, -1))
            assert torch.equal(self.start(path, "AVERAGE_SOURCE_TASKS")[name][2], self.SOURCE[name].mean(0))
            assert self.start(path, "ONLY_SOURCE_SHARED")[name].abs().max() < 0.5
        assert torch.equal(state["prompt_embeddings"], self.SOURCE["prompt_embeddings"])

    def test_from_a_file_of_torch_and_from_an_adapter_directory(self, tmp_path):
        torch.save(self.SOURCE, tmp_path / "source.bin")
        prompted().save_pretrained(tmp_path / "adapter")
        assert torch.equal(self.start(tmp_path / "source.bin")["prompt_embeddings"], self.SOURCE["prompt_embeddings"])
        expected = get_peft_model_state_dict(prompted())["prefix_task_cols"][1]
        assert torch.equal(self.start(tmp_path / "adapter", prompt_tuning_init_task=1)["prefix_task_cols"][0], expected)

    def test_no_code_is_run_from_a_source(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return (open, (str(tmp_path / "harm"), "w"))

        torch.save({**self.SOURCE, "prompt_embeddings": Harm()}, tmp_path / "source.bin")
        with pytest.raises(CheckpointError, match="never loaded"):
            self.start(tmp_path / "source.bin")
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("name", ["missing.safetensors", "missing.bin", "text.safetensors", "text.bin"])
    def test_a_source_that_is_none(self, name, tmp_path):
        for text in ("text.safetensors", "text.bin"):
            (tmp_path / text).write_text("no tensors")
        with pytest.raises(CheckpointError, match=name):
            self.start(tmp_path / name)

    def test_a_source_that_does_not_fit(self, tmp_path):
        with pytest.raises(CheckpointError, match="num_virtual_tokens, num_ranks"):
            self.start(self.written(tmp_path), num_ranks=3)
        with pytest.raises(CheckpointError, match="prompt_embeddings is"):
            self.start(self.written(tmp_path), "ONLY_SOURCE_SHARED", num_virtual_tokens=4)
        with pytest.raises(ConfigError, match=r"prompt_tuning_init_task: is 5, and the source has 5 tasks"):
            self.start(self.written(tmp_path), prompt_tuning_init_task=5)
        save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="holds no prompt_embeddings"):
            self.start(tmp_path / "other.safetensors")

    def test_a_text(self, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"a": 3, "b": 4, "[UNK]": 0}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
        options = {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": str(tmp_path)}
        state = get_peft_model_state_dict(get_peft_model(frozen(), config(**options, prompt_tuning_init_text="a b")))
        table = frozen().get_input_embeddings().weight
        assert torch.equal(state["prompt_embeddings"], table[[3, 4, 3]])
        with pytest.raises(ConfigError, match="no token"):
            get_peft_model(frozen(), config(**options, prompt_tuning_init_text=" "))

    def test_nothing_is_started_from_where_a_file_brings_it(self, tmp_path):
        path = self.written(tmp_path)
        options = {"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_state_dict_path": str(path)}
        get_peft_model(frozen(), config(**options)).save_pretrained(tmp_path / "adapter")
        path.unlink()
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(frozen(), tmp_path / "adapter"))
        assert torch.equal(loaded["prompt_embeddings"], self.SOURCE["prompt_embeddings"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_tasks": 0}, "num_tasks"),
        ({"num_tasks": None}, "num_tasks"),
        ({"num_ranks": 0}, "num_ranks"),
        ({"prompt_tuning_init": "SAMPLE_VOCAB"}, "prompt_tuning_init"),
        ({"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text"),
        ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}, "tokenizer_name_or_path"),
        ({"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs"),
        ({"prompt_tuning_init": "AVERAGE_SOURCE_TASKS"}, "prompt_tuning_init_state_dict_path"),
        (
            {
                "prompt_tuning_init": "EXACT_SOURCE_TASK",
                "prompt_tuning_init_state_dict_path": "x",
                "prompt_tuning_init_task": None,
            },
            "prompt_tuning_init_task",
        ),
    ],
)
def test_what_a_config_refuses(options, field):
    with pytest.raises(ConfigError, match=field):
        config(**options)


def test_an_encoder_decoder_model_has_two_halves():
    model = get_peft_model(t5(), config(task_type="SEQ_2_SEQ_LM"))
    shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    assert shapes == {"prompt_embeddings": (6, 16), "prefix_task_cols": (3, 6, 2), "prefix_task_rows": (3, 2, 16)}


def test_a_model_without_embeddings_stays_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TaskError):
        get_peft_model(model, config())
    assert all(parameter.requires_grad for parameter in model.parameters())
