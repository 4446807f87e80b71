"""What an adapter holds once per model: where it stands, what files hold of it, and what becomes of it."""

import copy

import pytest
import torch
from torch import nn

from peftcore import (
    LayerConfig,
    PeftMethod,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    option,
    register_peft_method,
    set_peft_model_state_dict,
    unregister_peft_method,
)
from peftcore.adapters.delta import WeightDelta
from peftcore.exceptions import CheckpointError
from peftcore.registry import registry

from .methods import BankedConfig
from .models import Net, anatomy, assert_as_before, differs, same, stir

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))


class DrawnConfig(LayerConfig, method="drawn"):
    seed: int = option(0, "Seed.")
    saves: bool = option(False, "Whether files hold what is drawn.")


class Drawn(nn.Module):
    """A vector from a seed, drawn on the CPU."""

    def __init__(self, config, bases):
        super().__init__()
        numbers = torch.randn(
            max(base.out_features for base in bases),
            generator=torch.Generator("cpu").manual_seed(config.seed),
            device="cpu",
        )
        self.register_buffer("drawn_d", numbers.to(torch.get_default_device()), persistent=config.saves)


class DrawnAdapter(WeightDelta):
    def __init__(self, base, config, shared):
        super().__init__(base, config, shared)
        self.drawn_v = nn.Parameter(torch.randn(base.in_features))

    def delta_weight(self):
        return torch.outer(self.shared.drawn_d[: self.base.out_features].to(self.drawn_v), self.drawn_v)


@pytest.fixture(autouse=True, scope="module")
def drawn():
    register_peft_method(PeftMethod(name="drawn", config_cls=DrawnConfig, adapter_cls=DrawnAdapter, shared_cls=Drawn))
    yield
    unregister_peft_method("drawn")


CONFIGS = {
    "a trained parameter": lambda: BankedConfig(target_modules=["one", "two"]),
    "drawn and saved": lambda: DrawnConfig(target_modules=["one", "two"], saves=True, seed=4),
    "drawn and not saved": lambda: DrawnConfig(target_modules=["one", "two"], seed=4),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    return request.param()


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype)


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shared(model):
    """Return the tensor that is shared, by its live name's end; there is just one of each."""
    found = [tensor for name, tensor in tensors(model).items() if name.endswith(("banked_bank", "drawn_d"))]
    assert len(found) == 1
    return found[0]


def test_it_stands_in_the_model_once(config):
    model = stir(get_peft_model(net(), config))
    assert shared(model.get_base_model()) is shared(model)
    assert shared(model).requires_grad == isinstance(shared(model), nn.Parameter)
    assert len(model.state_dict().keys() - net().state_dict().keys()) > 0


def test_a_model_adapted_in_place_holds_and_trains_it(config):
    model = inject_adapter_in_model(config, net())
    model(X).square().sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert ("banked_bank" in "".join(trained)) == isinstance(config, BankedConfig)
    assert all(dict(model.named_parameters())[name].grad.any() for name in trained)
    shared(model)


def test_a_model_adapted_in_place_takes_its_own_and_other_states(config):
    whole, inside = stir(get_peft_model(net(), config)), inject_adapter_in_model(config, net())
    own = get_peft_model_state_dict(inside)
    assert not any(name.startswith("base_model.model.") for name in own)
    for state in (get_peft_model_state_dict(whole), inside_names(get_peft_model_state_dict(whole))):
        inside = inject_adapter_in_model(config, net())
        set_peft_model_state_dict(inside, state)
        same(inside(X), whole(X))


def inside_names(state):
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def test_it_moves_with_the_model(config):
    model = get_peft_model(net(), config)
    assert shared(copy.deepcopy(model).double()).dtype == torch.float64
    assert shared(copy.deepcopy(model).to("meta")).is_meta
    inside = inject_adapter_in_model(config, net())
    assert shared(inside.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("autocast", "dtype", "expected"),
    [
        (True, torch.float32, torch.float32),
        (True, torch.bfloat16, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
        (True, torch.float64, torch.float64),
    ],
)
def test_it_is_fine_enough_for_the_layers(config, autocast, dtype, expected):
    model = get_peft_model(net(dtype), config, autocast_adapter_dtype=autocast)
    assert shared(model).dtype == expected


def test_it_is_fine_enough_for_the_finest_layer(config):
    model = net()
    model.two.double()
    assert shared(get_peft_model(model, config)).dtype == torch.float64


def test_it_is_made_where_the_layers_are(config):
    assert shared(get_peft_model(net().to("meta"), config)).is_meta


def test_on_the_meta_device_it_waits_for_its_file(config, tmp_path):
    model = stir(get_peft_model(net(), config))
    bare = get_peft_model(net(), config, low_cpu_mem_usage=True)
    assert shared(bare).is_meta == (not (isinstance(config, DrawnConfig) and not config.saves))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=True)
    assert not any(tensor.is_meta for tensor in tensors(loaded).values())
    same(loaded(X), model(X))


def test_each_adapter_has_its_own_and_takes_it_away(config):
    before = net()
    whole = anatomy(before)
    model = stir(get_peft_model(before, config, "a"), "a")
    first = model(X)
    model.add_adapter("b", config)
    stir(model, "b").set_adapter("b")
    differs(model(X), first)
    model.delete_adapter("a")
    shared(model)
    model.add_adapter("a", config)
    model.delete_adapter("b")
    model.delete_adapter("a")
    assert_as_before(model.get_base_model(), whole)


def test_beside_whole_modules_alone_there_is_none():
    model = get_peft_model(net(), BankedConfig(target_modules=[], modules_to_save=["head"]))
    assert list(get_peft_model_state_dict(model)) == ["base_model.model.head.weight", "base_model.model.head.bias"]


# ------------------------------------------------------------------------------------------------------ files


def adapted(**options):
    return stir(get_peft_model(net(), DrawnConfig(target_modules=["one", "two"], **options)))


def test_files_hold_it_once():
    assert [name for name in get_peft_model_state_dict(adapted(saves=True)) if "drawn_d" in name] == [
        "base_model.drawn_d"
    ]
    assert not any("drawn_d" in name for name in get_peft_model_state_dict(adapted()))


def test_what_the_config_derives_may_stand_in_a_file():
    written, model = adapted(seed=2, saves=True), adapted(seed=2)
    state = get_peft_model_state_dict(written)
    set_peft_model_state_dict(model, state)
    same(model(X), written(X))
    coarse = {name: tensor.bfloat16() if "drawn_d" in name else tensor for name, tensor in state.items()}
    set_peft_model_state_dict(model, coarse)
    same(model(X), written(X))


@pytest.mark.parametrize("seed", [1, 3])
def test_what_something_else_derives_is_refused(seed):
    state, model = get_peft_model_state_dict(adapted(seed=seed, saves=True)), adapted(seed=2)
    expected = model(X)
    with pytest.raises(CheckpointError, match=r"base_model\.drawn_d .* another seed"):
        set_peft_model_state_dict(model, state)
    with pytest.raises(CheckpointError, match="in shape"):
        set_peft_model_state_dict(model, {**state, "base_model.drawn_d": torch.zeros(3)})
    assert torch.equal(model(X), expected)


def test_plugins_convert_states_for_adapters_in_the_model_too(monkeypatch):
    written, model = adapted(seed=2), adapted(seed=2)
    older = {name.replace("drawn_", "older_"): t for name, t in get_peft_model_state_dict(written).items()}
    with pytest.raises(CheckpointError, match="older_v"):
        set_peft_model_state_dict(model, older)

    def convert(method, state, config, source):
        return {name.replace("older_", "drawn_"): t for name, t in state.items()} if method == "drawn" else None

    monkeypatch.setattr(registry, "convert_checkpoint", convert)
    set_peft_model_state_dict(model, older)
    same(model(X), written(X))
