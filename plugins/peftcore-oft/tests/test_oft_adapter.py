"""The mathematics of OFT, and what it refuses."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.base_layers import adapt
from peftcore.exceptions import ConfigError
from peftcore_oft import OFTAdapter, OFTConfig


def adapter_on(layer=None, spread=0.1, **options):
    torch.manual_seed(0)
    base = adapt(layer or nn.Linear(12, 5))
    adapter = OFTAdapter(base, OFTConfig(**{"oft_block_size": 4, "init_weights": False, **options}))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=spread)
    return adapter


def test_the_exact_form_is_orthogonal():
    blocks = adapter_on(spread=2.0, use_cayley_neumann=False).factors()
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=1e-5)


def test_the_series_approaches_the_inverse_rotation():
    """The two forms take the same numbers with opposite signs; files are so."""
    exact = adapter_on(use_cayley_neumann=False).factors().mT
    errors = [
        (adapter_on(num_cayley_neumann_terms=terms).factors() - exact).abs().max().item() for terms in (1, 2, 4, 6, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


def test_one_block_may_serve_everywhere():
    adapter = adapter_on(block_share=True)
    assert adapter.oft_R.weight.shape == (1, 6)
    first, *others = adapter.factors()
    assert len(others) == 2 and all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("share", [False, True])
def test_coft_keeps_the_generators_within_eps(share):
    options = {"coft": True, "block_share": share, "use_cayley_neumann": False}
    free, held = adapter_on(**options, eps=100.0), adapter_on(**options, eps=0.2)
    same_as_without = adapter_on(block_share=share, use_cayley_neumann=False)
    torch.testing.assert_close(free.factors(), same_as_without.factors())
    identity = torch.eye(4)
    blocks = held.factors()
    generators = torch.linalg.solve(blocks + identity, blocks - identity)
    held_blocks = 1 if share else 3
    assert torch.linalg.matrix_norm(generators).max() <= 0.2 / held_blocks**0.5 + 1e-6
    held.factors().sum().backward()
    assert held.oft_R.weight.grad.isfinite().all()


def test_coft_starts_with_finite_gradients():
    adapter = OFTAdapter(adapt(nn.Linear(8, 8)), OFTConfig(oft_block_size=4, coft=True))
    (adapter.pre(torch.randn(3, 8)) * torch.randn(3, 8)).sum().backward()
    assert adapter.oft_R.weight.grad.isfinite().all() and adapter.oft_R.weight.grad.any()


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.Conv2d(2, 3, 2), nn.Embedding(5, 8)], ids=repr)
def test_module_dropout_acts_in_training_calls_and_not_in_merged_weights(layer):
    model = nn.Sequential(layer)
    x = (
        torch.arange(5)
        if isinstance(layer, nn.Embedding)
        else torch.randn(3, *((8,) if layer.weight.dim() == 2 else (2, 4, 4)))
    )
    config = OFTConfig(r=1, oft_block_size=0, module_dropout=0.5, init_weights=False, target_modules=["0"])
    with torch.no_grad():
        frozen = model(x)
        adapted = get_peft_model(model, config)
        whole = adapted.eval()(x)
        adapted.train()
        outputs = [adapted(x) for _ in range(40)]
        kept = [torch.allclose(output, whole, atol=1e-5) for output in outputs]
        dropped = [torch.allclose(output, frozen, atol=1e-5) for output in outputs]
        assert any(kept) and any(dropped) and all(one != other for one, other in zip(kept, dropped, strict=True))
        adapted.merge_adapter()
        torch.testing.assert_close(adapted(x), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("r", {"r": 2}),
        ("r", {"r": 0, "oft_block_size": 0}),
        ("r", {"r": -1, "oft_block_size": 0}),
        ("oft_block_size", {"oft_block_size": 2.0}),
        ("module_dropout", {"module_dropout": 1.0}),
        ("eps", {"eps": 0.0}),
        ("num_cayley_neumann_terms", {"num_cayley_neumann_terms": 0}),
        ("bias", {"bias": "lora_only"}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, options):
    with pytest.raises(ConfigError, match=f"OFTConfig.{field}"):
        OFTConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"oft_block_size": 5}, r"oft_block_size: 5 does not divide the 12 .*Linear.* is 4"),
        ({"r": 5, "oft_block_size": 0}, r"r: 5 does not divide the 12 .*Linear.* is 4"),
        ({"r": 12, "oft_block_size": 0}, r"r: cuts the 12 .* size 1"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_and_nothing_changes(options, says, tmp_path):
    model = nn.Sequential(nn.Linear(60, 12), nn.Linear(12, 2))
    before = list(model.named_modules())
    with pytest.raises(ConfigError, match=f"OFTConfig.{says}"):
        get_peft_model(model, OFTConfig(**options, target_modules=["0", "1"]))
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_files_say_by_which_form_they_were_trained(tmp_path):
    """The same numbers mean opposite rotations in the two forms, so the config decides."""
    x = torch.randn(3, 12)
    outputs = {}
    for series in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(
            nn.Sequential(nn.Linear(12, 5)),
            OFTConfig(oft_block_size=4, init_weights=False, use_cayley_neumann=series, target_modules=["0"]),
        )
        model.save_pretrained(tmp_path / str(series))
        torch.manual_seed(0)
        loaded = PeftModel.from_pretrained(nn.Sequential(nn.Linear(12, 5)), tmp_path / str(series))
        torch.testing.assert_close(loaded(x), model(x))
        outputs[series] = model(x)
    assert not torch.allclose(outputs[False], outputs[True], atol=1e-2)
