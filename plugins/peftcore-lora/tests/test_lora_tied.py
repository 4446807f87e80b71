"""One adapter on two layers that store one weight: an embedding and the head of a language model."""

import copy

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.base_layers import adapt
from peftcore_lora import LoraAdapter, LoraConfig


def tied(**options):
    """An embedding's adapter with a Δ, and its second appearance on the head."""
    embedding, head = nn.Embedding(11, 5), nn.Linear(5, 11, bias=False)
    head.weight = embedding.weight
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **options)
    source = LoraAdapter(adapt(embedding), config)
    return source, source.tied(adapt(head), LoraConfig(r=99))


@pytest.mark.parametrize("options", [{}, {"full_matrix_if_smaller": True, "use_rslora": True}, {"use_rslora": True}])
def test_both_layers_see_one_delta(options):
    source, twin = tied(**options)
    torch.testing.assert_close(twin.canonical_delta(), source.canonical_delta().T)
    x = torch.randn(2, 5)
    torch.testing.assert_close(twin.delta_forward(x), x @ source.canonical_delta())


def test_layers_of_one_kind_see_it_untransposed():
    source, _ = tied()
    twin = source.tied(adapt(nn.Embedding(11, 5)), LoraConfig())
    torch.testing.assert_close(twin.canonical_delta(), source.canonical_delta())
    assert [*twin.saved_module().state_dict()] == [*source.state_dict()]


def test_the_parameters_belong_to_the_source_and_learn_from_both():
    source, twin = tied()
    assert not [*twin.parameters()]
    twin.delta_forward(torch.randn(2, 5)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in source.parameters())
    with torch.no_grad():
        source.lora_embedding_A.zero_()
    assert not twin.canonical_delta().any()


def test_a_file_holds_the_factors_under_both_layers_names():
    source, twin = tied()
    saved = twin.saved_module()
    state = saved.state_dict()
    torch.testing.assert_close(state["lora_A.weight"], source.lora_embedding_B.detach().T)
    torch.testing.assert_close(state["lora_B.weight"], source.lora_embedding_A.detach().T)
    saved.load_state_dict({key: torch.ones_like(tensor) for key, tensor in state.items()})
    torch.testing.assert_close(source.canonical_delta(), torch.full((5, 11), 6.0))


def test_the_second_follows_where_the_first_goes():
    source, twin = tied()
    both = copy.deepcopy(nn.ModuleList([source, twin])).double()
    assert both[1].dtype == torch.float64
    torch.testing.assert_close(both[1].canonical_delta(), both[0].canonical_delta().T)
    assert both[1].source is both[0]


def test_loading_into_the_first_by_assignment_reaches_the_second():
    source, twin = tied()
    state = {key: torch.ones_like(tensor) for key, tensor in source.state_dict().items()}
    source.load_state_dict(state, assign=True)
    torch.testing.assert_close(twin.canonical_delta(), torch.full((11, 5), 6.0))


class LanguageModel(nn.Module):
    """An embedding and a head that store one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


@pytest.mark.parametrize("target", ["embed", "head"])
def test_a_tied_model_stays_tied_from_the_start_through_a_file_to_the_merged_weight(target, tmp_path):
    config = LoraConfig(r=2, target_modules=[target], ensure_weight_tying=True, init_lora_weights=False)
    model, ids = get_peft_model(LanguageModel(), config).eval(), torch.arange(11)
    output = model(ids)
    assert [*get_peft_model_state_dict(model)] == [
        "base_model.model.embed.lora_embedding_A",
        "base_model.model.embed.lora_embedding_B",
        "base_model.model.head.lora_A.weight",
        "base_model.model.head.lora_B.weight",
    ]
    weight = LanguageModel().embed.weight + model.base_model.model.embed.adapters["default"].canonical_delta().T
    torch.testing.assert_close(output, weight @ weight.T)

    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(LanguageModel(), tmp_path).eval()(ids), output)

    merged = model.merge_and_unload()
    assert merged.head.weight is merged.embed.weight
    torch.testing.assert_close(merged(ids), output)
