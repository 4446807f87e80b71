"""PSOFT's own mathematics: which subspace, and how it is turned."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_psoft import PsoftConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def config(**options):
    return PsoftConfig(**{"r": 3, "target_modules": ["0", "2"], **options})


def adapted(model=None, **options):
    model = get_peft_model(model or base(), config(**options)).eval()
    perturb(model)
    return model


def adapter(model, path="0"):
    return model.get_base_model().get_submodule(path).adapters["default"]


@pytest.mark.parametrize("svd", ["full", "lowrank"])
@pytest.mark.parametrize("init", ["psoft_init", "pissa_init"])
@pytest.mark.parametrize("path", ["0", "2"])
def test_the_factors_are_the_best_of_their_rank(svd, init, path):
    part = adapter(adapted(psoft_svd=svd, ab_svd_init=init, psoft_svd_lowrank_niter=100), path)
    u, s, vh = torch.linalg.svd(part.base.weight(), full_matrices=False)
    torch.testing.assert_close(part.psoft_B @ part.psoft_A, u[:, :3] * s[:3] @ vh[:3], atol=1e-5, rtol=1e-4)
    gram = torch.eye(3) if init == "psoft_init" else torch.diag(s[:3])
    torch.testing.assert_close(part.psoft_A @ part.psoft_A.T, gram, atol=1e-5, rtol=1e-4)


def test_the_weight_s_principal_part_is_turned_and_the_rest_stays():
    """Without scalings, W' has the geometry of W: its rows, in the subspace, keep their lengths and their angles."""
    part = adapter(adapted(psoft_mag_a=False, psoft_mag_b=False))
    weight, a = part.base.weight(), part.psoft_A
    changed, _ = part.fold(weight, None)
    inside = a.T @ a
    torch.testing.assert_close(changed - changed @ inside, weight - weight @ inside, atol=1e-5, rtol=1e-4)
    before, after = weight @ inside, changed @ inside
    torch.testing.assert_close(before @ before.T, part.psoft_B @ part.psoft_B.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(after), torch.linalg.svdvals(before), atol=1e-5, rtol=1e-4)
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize(("options", "error"), [({}, 1e-5), ({"use_cayley_neumann": True}, 0.05)])
def test_the_rotation_is_orthogonal(options, error):
    model = get_peft_model(base(), config(**options))
    perturb(model, scale=0.2)
    rotation = adapter(model).rotation()
    assert (rotation @ rotation.T - torch.eye(3)).abs().max() < error
    assert (rotation - torch.eye(3)).abs().max() > 0.1


def test_the_series_approaches_the_inverse():
    def rotation(**options):
        model = get_peft_model(base(), config(**options))
        perturb(model, scale=0.2)
        return adapter(model).rotation()

    errors = [
        (rotation(use_cayley_neumann=True, num_cayley_neumann_terms=terms) - rotation()).abs().max()
        for terms in (4, 6, 60)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-6


def test_the_generator_s_norm_is_bounded():
    part = adapter(adapted(use_cayley_neumann=True, num_cayley_neumann_terms=2, cayley_neumann_eps=0.3))
    skew = (part.rotation() - torch.eye(3)) / 2
    torch.testing.assert_close(torch.linalg.matrix_norm(skew), torch.tensor(0.3))


def test_each_stacked_expert_is_turned_by_itself():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(2, 4, 6))

    model = nn.ModuleDict({"experts": Experts()})
    part = adapter(adapted(model, target_modules=[], target_parameters=["experts.matrix"]), "experts")
    rotations = part.rotation()
    for expert in range(2):
        u, s, vh = torch.linalg.svd(model["experts"].base_layer.matrix[expert], full_matrices=False)
        scaled = part.psoft_R["vector_b"][expert].diag() @ rotations[expert] @ part.psoft_R["vector_a"][expert].diag()
        expected = u[:, :3] * s[:3] @ (scaled - torch.eye(3)) @ vh[:3]
        torch.testing.assert_close(part.delta_weight()[expert], expected, atol=1e-5, rtol=1e-4)


def test_what_trains_is_small():
    trained = {name.rpartition(".")[2]: p.shape for name, p in adapted().named_parameters() if p.requires_grad}
    assert trained == {"weight": (3,), "vector_a": (3,), "vector_b": (3,)}


def test_drawing_the_subspace_leaves_the_generator_alone():
    torch.manual_seed(4)
    expected = torch.rand(3)
    model = base()
    torch.manual_seed(4)
    get_peft_model(model, config(psoft_svd="lowrank"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("svd", ["full", "lowrank"])
def test_a_loaded_adapter_finds_the_same_subspace(svd, low_cpu_mem_usage, tmp_path):
    model = adapted(psoft_svd=svd, psoft_svd_lowrank_niter=1, random_seed=3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X), model(X))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"psoft_alpha": 0}, "psoft_alpha"),
        ({"psoft_dropout": 1.0}, "psoft_dropout"),
        ({"ab_svd_init": "svd"}, "ab_svd_init"),
        ({"psoft_svd": "randomised"}, "psoft_svd"),
        ({"psoft_svd_lowrank_niter": -1}, "psoft_svd_lowrank_niter"),
        ({"random_seed": 0.5}, "random_seed"),
        ({"num_cayley_neumann_terms": 0}, "num_cayley_neumann_terms"),
        ({"cayley_neumann_eps": 1.0}, "cayley_neumann_eps"),
        ({"cayley_neumann_eps": 0.0}, "cayley_neumann_eps"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"PsoftConfig\.{field}: "):
        config(**options)


def test_a_rank_above_the_subspace_is_refused():
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"PsoftConfig\.r: 5 is above the 4 singular values of a Linear"):
        get_peft_model(model, config(r=5))
    before.assert_same(model, "After a config was refused", "")
