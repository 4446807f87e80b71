"""Context-aware prompt tuning: its balls, its loss, resuming, and what it refuses."""

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError, MixedBatchError, TaskError
from peftcore.testing.models import gpt2, llama, t5
from peftcore.testing.trials import perturb, seeded
from peftcore_cpt import CPTConfig
from peftcore_cpt.loss import label_loss

IDS = torch.tensor([[3, 4, 5, 6, 8], [7, 8, 9, 2, 4]])
TYPES = torch.tensor([[1, 2, 3, 4, 4], [1, 2, 3, 4, 0]])
CONTEXT = {
    "cpt_token_ids": [3, 4, 5, 6, 7, 8, 9, 10, 11],
    "cpt_tokens_type_mask": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "opt_projection_epsilon": 0.5,
    "opt_projection_format_epsilon": 0.25,
}


def frozen():
    with seeded(0):
        return llama()


def config(**options):
    return CPTConfig(**{"task_type": "CAUSAL_LM", **CONTEXT, **options})


def prompted(**options):
    with seeded(1):
        return get_peft_model(frozen(), config(**options))


def encoder(model):
    return model.base_model.prompt_encoder["default"]


def train(model, steps=1, rate=20.0):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS, input_type_mask=TYPES).loss.backward()
        optimizer.step()
    return model


def test_a_new_context_is_the_examples_themselves():
    model = prompted().eval()
    expected = frozen().eval()(torch.cat([torch.tensor([CONTEXT["cpt_token_ids"]] * 2), IDS], 1)).logits
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_each_embedding_stays_in_the_ball_of_its_type_and_labels_where_they_were():
    model = train(prompted(), steps=2)
    table = get_peft_model_state_dict(model)["prompt_embeddings"]
    moved = (table - encoder(model).context_embeddings).norm(dim=1)
    unit = (16 / 2048) ** 0.5
    expected = torch.tensor([0, 0.25, 0.5, 0.25, 0, 0.25, 0.5, 0.25, 0]) * unit
    torch.testing.assert_close(moved, expected)  # steps so long that all are at the border
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    small = train(prompted(), rate=1e-3)
    delta = encoder(small).delta_embeddings.detach().clone()
    assert delta[1].norm() > 0
    encoder(small).embeddings(None)
    assert torch.equal(encoder(small).delta_embeddings, delta)  # what is inside stays


def test_no_gradient_reaches_what_may_not_move():
    model = prompted()
    model(input_ids=IDS, labels=IDS, input_type_mask=TYPES).loss.backward()
    rows = encoder(model).delta_embeddings.grad.abs().amax(1) > 0
    assert rows.tolist() == [False, True, True, True, False, True, True, True, False]


def test_two_calls_may_come_before_one_backward():
    model = train(prompted())
    model.zero_grad()
    call = {"input_ids": IDS, "labels": IDS}
    (model(**call).loss + model(**call).loss).backward()
    twice = encoder(model).delta_embeddings.grad.clone()
    model.zero_grad()
    model(**call).loss.backward()
    torch.testing.assert_close(twice, 2 * encoder(model).delta_embeddings.grad)


def plain_loss(logits, targets, types, decay):
    """Return the loss from its definition, token by token."""
    total, number = 0.0, 0
    for row in range(len(targets)):
        labels = sorted({int(t) for t in types[row] if t > 0 and t % 4 == 0})
        for place in range(1, targets.shape[1]):
            kind, token = int(types[row, place]), int(targets[row, place])
            if kind in labels and token != -100:
                behind = len(labels) - 1 - labels.index(kind)
                total += decay**behind * -logits[row, place - 1].log_softmax(0)[token].item()
                number += 1
    return total / max(number, 1)


@hypothesis.given(strategies.integers(0, 10**6), strategies.floats(0.1, 2))
@hypothesis.settings(deadline=None, max_examples=30)
def test_the_loss_is_its_definition(seed, decay):
    with seeded(seed):
        logits, types = torch.randn(2, 6, 5), torch.randint(0, 13, (2, 6))
        targets = torch.randint(0, 5, (2, 6)).masked_fill(torch.rand(2, 6) < 0.2, -100)
    expected = torch.tensor(plain_loss(logits, targets, types, decay))
    torch.testing.assert_close(label_loss(logits, targets, types, decay), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_changes_no_loss(padding):
    model = prompted(opt_weighted_loss_type="decay", opt_loss_decay_factor=0.5).eval()
    plain = model(input_ids=IDS, labels=IDS, input_type_mask=TYPES).loss
    sides = (2, 0) if padding == "left" else (0, 2)
    wide = {
        "input_ids": nn.functional.pad(IDS, sides, value=1),
        "attention_mask": nn.functional.pad(torch.ones_like(IDS), sides),
        "labels": nn.functional.pad(IDS, sides, value=-100),
        "input_type_mask": nn.functional.pad(TYPES, sides),
    }
    torch.testing.assert_close(model(**wide).loss, plain)
    as_tuple = model(**wide, return_dict=False)
    torch.testing.assert_close(as_tuple[0], plain)
    assert as_tuple[1].shape == (2, 16, 30)


def test_what_a_call_is_given_stays_as_it_is():
    model, types, labels = prompted(), TYPES.clone(), IDS.clone()
    model(input_ids=IDS, labels=labels, input_type_mask=types)
    assert torch.equal(types, TYPES)
    assert torch.equal(labels, IDS)


def test_the_frozen_models_own_loss_where_the_context_does_not_act():
    model = prompted()
    with model.disable_adapter():
        loss = model(input_ids=IDS, labels=IDS, input_type_mask=TYPES).loss
    torch.testing.assert_close(loss, frozen()(input_ids=IDS, labels=IDS).loss)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_training_goes_on_from_a_file_exactly(low_cpu_mem_usage, tmp_path):
    model = train(prompted(), steps=2, rate=0.01)
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(frozen(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage)
    for _ in range(2):
        one, other = get_peft_model_state_dict(model), get_peft_model_state_dict(resumed)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        train(model, rate=0.01)
        train(resumed, rate=0.01)


class TestTheSumAlone:
    """As HF PEFT writes it."""

    def test_is_used_on_any_words(self):
        loaded = get_peft_model(frozen(), config(inference_mode=True))
        table = torch.randn(9, 16)
        set_peft_model_state_dict(loaded, {"prompt_embeddings": table})
        assert torch.equal(encoder(loaded).embeddings(None), table)

    def test_is_trained_only_near_the_models_words(self):
        model = train(prompted())
        table = get_peft_model_state_dict(model)["prompt_embeddings"]
        other = prompted()
        set_peft_model_state_dict(other, {"prompt_embeddings": table})
        torch.testing.assert_close(encoder(other).embeddings(None), table)
        before = get_peft_model_state_dict(other)
        with pytest.raises(CheckpointError, match="farther from this model's words"):
            set_peft_model_state_dict(other, {"prompt_embeddings": table + 1})
        after = get_peft_model_state_dict(other)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_has_to_have_the_right_shape(self):
        with pytest.raises(CheckpointError, match="delta_embeddings"):
            set_peft_model_state_dict(prompted(), {"prompt_embeddings": torch.zeros(4, 16)})


def test_a_state_dict_given_stays_as_it_is():
    model = prompted()
    perturb(model, scale=1.0)
    given = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copies = {name: tensor.clone() for name, tensor in given.items()}
    get_peft_model_state_dict(model, state_dict=given)
    assert all(torch.equal(given[name], copies[name]) for name in given)


def test_tokens_that_the_mask_hides_are_left_out():
    model = prompted(cpt_mask=[1, 0, 0, 0, 0, 1, 1, 1, 1]).eval()
    ids = torch.tensor([[3, 8, 9, 10, 11]] * 2)
    torch.testing.assert_close(model(input_ids=IDS).logits, frozen().eval()(torch.cat([ids, IDS], 1)).logits)
    assert get_peft_model_state_dict(model)["prompt_embeddings"].shape == (9, 16)
    assert model(input_ids=IDS, labels=IDS).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"task_type": None}, "task_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"cpt_token_ids": None}, "cpt_token_ids"),
        ({"cpt_token_ids": []}, "cpt_token_ids"),
        ({"cpt_token_ids": ["a"]}, "cpt_token_ids"),
        ({"num_virtual_tokens": 3}, "num_virtual_tokens"),
        ({"cpt_mask": [1]}, "cpt_mask"),
        ({"cpt_mask": [2] * 9}, "cpt_mask"),
        ({"cpt_mask": [0] * 9}, "cpt_mask"),
        ({"cpt_tokens_type_mask": [1, 2]}, "cpt_tokens_type_mask"),
        ({"cpt_tokens_type_mask": [-1] * 9}, "cpt_tokens_type_mask"),
        ({"opt_weighted_loss_type": "linear"}, "opt_weighted_loss_type"),
        ({"opt_loss_decay_factor": 0.0}, "opt_loss_decay_factor"),
        ({"opt_projection_epsilon": -0.1}, "opt_projection_epsilon"),
        ({"opt_projection_format_epsilon": -0.1}, "opt_projection_format_epsilon"),
    ],
)
def test_what_a_config_refuses(options, field):
    with pytest.raises(ConfigError, match=field):
        config(**options)


@pytest.mark.parametrize(
    ("build", "options", "error"),
    [
        (llama, {"cpt_token_ids": [3, 4, 5, 6, 7, 8, 9, 10, 99]}, ConfigError),
        (lambda: gpt2(n_positions=9), {}, ConfigError),
        (t5, {}, TaskError),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {}, TaskError),
    ],
)
def test_a_model_that_does_not_fit_stays_as_it_was(build, options, error):
    model = build()
    with pytest.raises(error):
        get_peft_model(model, config(**options))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_rows_of_a_mixed_batch_may_have_contexts():
    model = prompted().eval()
    perturb(model, scale=0.5)
    together = model(input_ids=IDS, adapter_names=["default", "__base__"]).logits[:, -1]
    torch.testing.assert_close(together[:1], model(input_ids=IDS[:1]).logits[:, -1])
    torch.testing.assert_close(together[1:], frozen().eval()(input_ids=IDS[1:]).logits[:, -1])


def test_what_a_call_may_not_be():
    model = prompted()
    with pytest.raises(TaskError, match=r"input_type_mask must be \[2, 5\]"):
        model(input_ids=IDS, labels=IDS, input_type_mask=TYPES[:, :3])
    with pytest.raises(MixedBatchError, match="loss of its own"):
        model(input_ids=IDS, labels=IDS, adapter_names=["default", "__base__"])
    model.add_adapter("other", config())
    model.set_adapter(["default", "other"])
    with pytest.raises(TaskError, match="no other adapter"):
        model(input_ids=IDS, labels=IDS)
