"""P-tuning: its networks, resuming from its files, and what it refuses."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError, TaskError
from peftcore.testing.models import gpt2, llama, t5
from peftcore.testing.trials import seeded
from peftcore_p_tuning import PromptEncoderConfig

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
LSTM = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 5}
NETWORKS = pytest.mark.parametrize("network", [{}, LSTM], ids=["mlp", "lstm"])


def frozen():
    with seeded(0):
        return llama()


def config(**options):
    return PromptEncoderConfig(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, **options})


def prompted(**options):
    with seeded(1):
        return get_peft_model(frozen(), config(**options))


def encoder(model):
    return model.base_model.prompt_encoder["default"]


def train(model, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model


def states_equal(one, other):
    one, other = get_peft_model_state_dict(one), get_peft_model_state_dict(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@NETWORKS
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_training_goes_on_from_a_file_exactly(network, low_cpu_mem_usage, tmp_path):
    model = train(prompted(**network), 2)
    model.save_pretrained(tmp_path)
    resumed = PeftModel.from_pretrained(
        frozen(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    ).train()
    assert states_equal(resumed, model)
    before = get_peft_model_state_dict(model)["prompt_embeddings"]
    train(model, 1)
    train(resumed, 1)
    assert states_equal(resumed, model)
    assert not torch.equal(get_peft_model_state_dict(model)["prompt_embeddings"], before)
    assert torch.equal(resumed(input_ids=IDS).logits, model(input_ids=IDS).logits)


@NETWORKS
def test_the_table_in_a_file_is_what_the_network_makes_in_use(network, tmp_path):
    model = train(prompted(**network, encoder_dropout=0.5), 1)
    encoder(model).prompt_encoder.mlp_head.eval()  # somebody's choice, which saving leaves alone
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = get_peft_model_state_dict(model)
    modes = encoder(model).prompt_encoder
    assert (modes.training, modes.embedding.training, modes.mlp_head.training) == (True, True, False)
    assert state["prompt_embeddings"].dtype == torch.float32
    torch.testing.assert_close(state["prompt_embeddings"], encoder(model.eval()).table().detach(), rtol=1e-5, atol=1e-6)


@NETWORKS
def test_a_state_dict_given_is_what_the_table_is_computed_from(network):
    model, other = prompted(**network), prompted(**network)
    given = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    set_peft_model_state_dict(other, get_peft_model_state_dict(model, state_dict=given))
    taken = get_peft_model_state_dict(model, state_dict=given)["prompt_embeddings"]
    torch.testing.assert_close(encoder(other.eval()).table(), taken)
    assert not torch.allclose(taken, get_peft_model_state_dict(model)["prompt_embeddings"])


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_model_in_bfloat16(autocast_adapter_dtype, tmp_path):
    kwargs = {"autocast_adapter_dtype": autocast_adapter_dtype}
    model = get_peft_model(frozen().to(torch.bfloat16), config(**LSTM), **kwargs).eval()
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(
            frozen().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **kwargs
        ).eval()
        assert encoder(loaded).dtype == (torch.float32 if autocast_adapter_dtype else torch.bfloat16)
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


class TestTheTableAlone:
    """As HF PEFT writes it."""

    TABLE = {"prompt_embeddings": torch.arange(48.0).reshape(3, 16)}

    def frozen_adapter(self, tmp_path):
        prompted().save_pretrained(tmp_path)
        return PeftModel.from_pretrained(frozen(), tmp_path)

    def test_is_used(self, tmp_path):
        model = self.frozen_adapter(tmp_path)
        set_peft_model_state_dict(model, self.TABLE)
        assert torch.equal(encoder(model).table(), self.TABLE["prompt_embeddings"])
        assert get_peft_model_state_dict(model).keys() == self.TABLE.keys()
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_is_no_end(self, tmp_path):
        model, whole = self.frozen_adapter(tmp_path), get_peft_model_state_dict(prompted())
        set_peft_model_state_dict(model, self.TABLE)
        set_peft_model_state_dict(model, whole)
        assert torch.equal(encoder(model).table(), whole["prompt_embeddings"])

    def test_is_no_place_to_train_from(self, tmp_path):
        model = prompted()
        before = get_peft_model_state_dict(model)
        with pytest.raises(CheckpointError, match="is_trainable=False"):
            set_peft_model_state_dict(model, self.TABLE)
        assert get_peft_model_state_dict(model).keys() == before.keys()

    def test_has_to_have_the_right_shape(self, tmp_path):
        model = self.frozen_adapter(tmp_path)
        before = get_peft_model_state_dict(model)
        with pytest.raises(CheckpointError, match=r"\[4, 16\] in the file and \[3, 16\]"):
            set_peft_model_state_dict(model, {"prompt_embeddings": torch.zeros(4, 16)})
        after = get_peft_model_state_dict(model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_half_network_is_refused():
    model = prompted()
    state = {name: tensor for name, tensor in get_peft_model_state_dict(model).items() if "mlp_head.0" not in name}
    with pytest.raises(CheckpointError, match=r"prompt_encoder\.mlp_head\.0\.weight"):
        set_peft_model_state_dict(prompted(), state)


def test_dropout_is_between_the_layers_of_an_lstm_in_training():
    model = prompted(**LSTM, encoder_dropout=0.9)
    prompt = encoder(model).train()
    assert not torch.equal(prompt.table(), prompt.table())
    assert torch.equal(prompt.eval().table(), prompt.table())
    assert prompted(**LSTM, encoder_num_layers=1, encoder_dropout=0.9)  # between no layers, and no warning


def test_an_lstm_lets_each_token_know_of_the_others():
    def moved(**network):
        prompt = encoder(prompted(**network)).eval()
        before = prompt.table().detach()
        with torch.no_grad():
            prompt.prompt_encoder.embedding.weight[1] += 1
        return (prompt.table() - before).abs().amax(1) > 1e-6

    assert moved(**LSTM).tolist() == [True, True, True]
    assert moved().tolist() == [False, True, False]


def test_the_mlp_has_as_many_hidden_layers_as_asked_for():
    linear = [m for m in encoder(prompted(encoder_num_layers=3)).modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 4


def test_an_encoder_decoder_model_has_two_halves():
    model = get_peft_model(t5(), PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
    assert get_peft_model_state_dict(model)["prompt_embeddings"].shape == (6, 16)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_virtual_tokens": None}, "num_virtual_tokens"),
        ({"encoder_reparameterization_type": "GRU"}, "encoder_reparameterization_type"),
        ({"encoder_num_layers": 0}, "encoder_num_layers"),
        ({"encoder_dropout": 1.0}, "encoder_dropout"),
        ({"encoder_hidden_size": 0}, "encoder_hidden_size"),
    ],
)
def test_what_a_config_refuses(options, field):
    with pytest.raises(ConfigError, match=field):
        config(**options)


@pytest.mark.parametrize(
    ("build", "options", "error"),
    [
        (gpt2, {"num_virtual_tokens": 16}, ConfigError),  # as many as positions
        (gpt2, {"token_dim": 8}, ConfigError),
        (gpt2, {"num_transformer_submodules": 2}, ConfigError),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {}, TaskError),
    ],
)
def test_a_model_that_does_not_fit_stays_as_it_was(build, options, error):
    model = build()
    with pytest.raises(error):
        get_peft_model(model, config(**options))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
