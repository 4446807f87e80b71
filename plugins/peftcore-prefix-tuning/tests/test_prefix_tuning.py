"""The prefix and the network that makes it, training on from a file, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import peftcore
from peftcore import get_peft_model
from peftcore.exceptions import CheckpointError, ConfigError, TaskError
from peftcore.testing import Snapshot
from peftcore.testing.models import bert, gpt2, llama, t5
from peftcore_prefix_tuning import PrefixTuningConfig

IDS = torch.tensor([[3, 4, 5, 6]])
SIZES = {"num_virtual_tokens": 3}


def same_model(build, **options):
    torch.manual_seed(0)
    return build(**options)


def made(build=llama, **options):
    model = same_model(build)
    torch.manual_seed(1)
    return get_peft_model(model, PrefixTuningConfig(**SIZES, **options))


def state(model):
    return peftcore.get_peft_model_state_dict(model)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def step(model, optimizer):
    optimizer.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def optimizer_of(model):
    return torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)


def test_the_prefix_is_that_of_a_cache_that_holds_it():
    """As the frozen model goes on from a cache in which keys and values were written by hand."""
    from transformers import DynamicCache

    model, frozen = made(), same_model(llama).eval()
    layers = state(model)["prompt_embeddings"].reshape(1, 3, 2, 2, 1, 8).permute(2, 3, 0, 4, 1, 5)
    cache = DynamicCache(config=frozen.config)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    with torch.no_grad():
        expected = frozen(input_ids=IDS, past_key_values=cache).logits
    torch.testing.assert_close(logits(model), expected)


def test_grouped_queries_need_few_keys():
    assert state(made(llama))["prompt_embeddings"].shape == (3, 2 * 2 * 1 * 8)
    assert state(made(gpt2))["prompt_embeddings"].shape == (3, 2 * 2 * 2 * 8)


def test_a_decoder_s_layers_have_a_prefix_each_if_there_is_one_sub_module():
    model = made(lambda: t5(num_layers=4), num_transformer_submodules=1, task_type="SEQ_2_SEQ_LM")
    model(input_ids=IDS, labels=IDS).loss.backward()
    (table,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    assert table.grad.reshape(3, 4, -1).any(2).all()


def test_zeros_start_at_zeros():
    assert not state(made(init_weights="zero"))["prompt_embeddings"].any()


def test_a_network_makes_the_prefix_and_its_hidden_layer_has_the_size_asked_for():
    plain, wide = made(prefix_projection=True), made(prefix_projection=True, encoder_hidden_size=20)
    names = {name.removeprefix("prompt_encoder.") for name in state(plain)} - {"prompt_embeddings"}
    layers = {f"transform.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert names == {"embedding.weight", *layers}
    assert plain.peft_config["default"].encoder_hidden_size == 8
    assert state(wide)["prompt_encoder.transform.0.weight"].shape == (20, 8)
    model = plain
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("projection", [True, False])
def test_training_goes_on_from_a_file_exactly(projection, tmp_path):
    model = made(prefix_projection=projection).train()
    optimizer = optimizer_of(model)
    for _ in range(2):
        step(model, optimizer)
    model.save_pretrained(tmp_path)
    again = peftcore.PeftModel.from_pretrained(same_model(llama), tmp_path, is_trainable=True).train()
    other = optimizer_of(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(logits(again), logits(model))
    for one, its in ((model, optimizer), (again, other)):
        step(one.train(), its)
    assert state(again).keys() == state(model).keys()
    assert all(torch.equal(state(again)[name], tensor) for name, tensor in state(model).items())
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_finished_prefix_is_used_but_does_not_train_on(low_cpu_mem_usage, tmp_path):
    model = made(prefix_projection=True)
    model.save_pretrained(tmp_path)
    finished = {"prompt_embeddings": state(model)["prompt_embeddings"].clone()}
    from safetensors.torch import save_file

    save_file(finished, tmp_path / "adapter_model.safetensors")
    plain = same_model(llama)
    before = Snapshot.of(plain)
    with pytest.raises(CheckpointError, match=r"training can't go on.*is_trainable=False"):
        peftcore.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage)
    before.assert_same(plain, "from_pretrained was refused", "")
    used = peftcore.PeftModel.from_pretrained(plain, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(used), logits(model))
    assert state(used).keys() == finished.keys()


def test_a_network_s_file_goes_into_a_new_adapter_through_memory():
    model = made(prefix_projection=True)
    other = get_peft_model(same_model(llama), PrefixTuningConfig(**SIZES, prefix_projection=True))
    assert not torch.equal(logits(model), logits(other))
    peftcore.set_peft_model_state_dict(other, state(model))
    assert torch.equal(logits(model), logits(other))


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_virtual_tokens": None}, "num_virtual_tokens: has to be given"),
        ({"encoder_hidden_size": 0}, "encoder_hidden_size"),
        ({"init_weights": "one"}, "init_weights"),
        (
            {"init_weights": "zero", "prefix_projection": True},
            "init_weights: 'zero' does not go with prefix_projection",
        ),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options, field):
    with pytest.raises(ConfigError, match=rf"PrefixTuningConfig\.{field}"):
        PrefixTuningConfig(**{**SIZES, **options})


class WithoutCache(nn.Module):
    """A model with embeddings and a config, and no place for keys and values."""

    def __init__(self):
        super().__init__()
        inner = gpt2()
        self.config, self.embed = inner.config, inner.get_input_embeddings()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        return self.embed(input_ids)


@pytest.mark.parametrize(
    ("build", "options", "error", "problem"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)), {}, TaskError, "Sequential has no config"),
        (WithoutCache, {}, TaskError, r"WithoutCache takes none \(past_key_values\)"),
        (gpt2, {"num_virtual_tokens": 16}, ConfigError, "num_virtual_tokens: is 16, and the model has 16 positions"),
        (llama, {"token_dim": 16}, ConfigError, "token_dim: is 16, and the model's is 8"),
        (gpt2, {"num_layers": 3}, ConfigError, "num_layers: is 3, and the model's is 2"),
        (gpt2, {"num_attention_heads": 1}, ConfigError, "num_attention_heads: is 1, and the model's is 2"),
        (gpt2, {"task_type": "TOKEN_CLS"}, TaskError, "classifier or score.*GPT2LMHeadModel has none"),
    ],
    ids=["no config", "no cache", "positions", "dim", "layers", "heads", "task"],
)
def test_what_a_model_has_no_place_for_leaves_it_as_it_was(build, options, error, problem):
    model = build()
    before = Snapshot.of(model)
    with pytest.raises(error, match=problem):
        get_peft_model(model, PrefixTuningConfig(**{**SIZES, **options}))
    before.assert_same(model, "get_peft_model was refused", "Is something put in before all is checked?")


@pytest.mark.parametrize("projection", [True, False])
def test_a_checkpoint_of_another_size_is_refused(projection, tmp_path):
    made(prefix_projection=projection).save_pretrained(tmp_path)
    for build, config, error, problem in (
        (lambda: llama(num_hidden_layers=3), None, ConfigError, "num_layers: is 2, and the model's is 3"),
        (llama, PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=projection), CheckpointError, r"\[3, \d+\]"),
    ):
        model = build()
        before = Snapshot.of(model)
        with pytest.raises(error, match=problem):
            peftcore.PeftModel.from_pretrained(model, tmp_path, config=config)
        before.assert_same(model, "from_pretrained was refused", "")


def test_gradient_checkpointing_which_drops_the_prefix_is_refused():
    model = made().train()
    model.gradient_checkpointing_enable()
    with pytest.raises(TaskError, match=r"gradient_checkpointing_disable\(\)"):
        model(input_ids=IDS, labels=IDS)
    with pytest.raises(TaskError, match=r"gradient_checkpointing_disable\(\)"):
        model.generate(IDS, max_new_tokens=2)
    with model.disable_adapter():
        model(input_ids=IDS, labels=IDS).loss.backward()
    evaluated = logits(model.eval())
    model.gradient_checkpointing_disable()
    assert torch.equal(logits(model), evaluated)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()


def test_an_encoder_takes_a_prefix():
    model = made(bert, task_type="SEQ_CLS")
    frozen = same_model(bert).eval()(input_ids=IDS).logits
    assert (logits(model) - frozen).abs().max() > 1e-4
