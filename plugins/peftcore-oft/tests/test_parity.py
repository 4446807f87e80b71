"""OFT here and in HF PEFT: one file, one output, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.testing import perturb
from peftcore_oft import OFTConfig


class Layers(nn.Module):
    """One layer of each kind that both libraries know; the kernel of size 1 is the one that both compute alike."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.mix = nn.Conv2d(8, 12, 1, stride=2)
        self.project = nn.Linear(12, 8)
        self.last = nn.Linear(8, 6, bias=False)

    def forward(self, ids):
        x = self.mix(self.words(ids).permute(0, 2, 1)[..., None].expand(-1, -1, -1, 3))
        return self.last(self.project(x.tanh().mean((2, 3))).tanh())


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def opt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 12, "num_hidden_layers": 2}
    config = transformers.OPTConfig(
        vocab_size=11, num_attention_heads=2, max_position_embeddings=8, pad_token_id=0, **sizes
    )
    return transformers.OPTForCausalLM(config).eval()


IDS = torch.arange(20).reshape(4, 5) % 11
ALL = {"target_modules": ["words", "mix", "project", "last"]}
CASES = {
    **{f"{n} terms": (layers, {**ALL, "oft_block_size": 4, "num_cayley_neumann_terms": n}) for n in range(1, 8)},
    "exact": (layers, {**ALL, "oft_block_size": 4, "use_cayley_neumann": False}),
    "by number": (layers, {**ALL, "r": 2, "oft_block_size": 0, "use_cayley_neumann": False}),
    "shared": (layers, {**ALL, "oft_block_size": 2, "block_share": True}),
    "constrained": (layers, {**ALL, "oft_block_size": 4, "coft": True, "eps": 0.3}),
    "constrained, shared": (layers, {**ALL, "oft_block_size": 4, "coft": True, "eps": 0.3, "block_share": True}),
    "dropout": (layers, {**ALL, "oft_block_size": 4, "module_dropout": 0.5, "bias": "oft_only"}),
    "opt": (opt, {"target_modules": ["q_proj", "fc1", "fc2"], "oft_block_size": 4}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def adapters_alone():
    """HF PEFT writes the weights of adapted embeddings along, and says so."""
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")


def answer(model, ids=IDS):
    with torch.no_grad():
        output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits


def theirs(build, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(build(), peft.OFTConfig(**options)).eval()


def stir(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)


def load_there(build, directory):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(build(), directory).eval()


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build(), OFTConfig(**options))
    perturb(ours, scale=0.25)
    ours.save_pretrained(tmp_path)
    loaded = load_there(build, tmp_path)
    assert_same(answer(ours), answer(loaded))
    assert_same(answer(ours.merge_and_unload()), answer(loaded.merge_and_unload()))


def test_hf_peft_s_here(case, tmp_path):
    build, options = case
    loaded = theirs(build, options)
    stir(loaded)
    loaded.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(build(), tmp_path)
    assert_same(answer(ours), answer(loaded))
    if options.get("num_cayley_neumann_terms") != 1:  # one term is the identity
        assert not torch.allclose(answer(ours), answer(build()), atol=1e-3)
    ours.save_pretrained(tmp_path / "again")
    names = load_file(tmp_path / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    shapes = {name: (value.shape, value.dtype) for name, value in names.items() if not name.endswith("words.weight")}
    assert {name: (value.shape, value.dtype) for name, value in again.items()} == shapes
    assert_same(answer(ours.merge_and_unload()), answer(loaded.merge_and_unload()))


def test_a_size_that_hf_peft_adjusted_is_found_again(tmp_path):
    """HF PEFT takes the nearest size that divides, and writes down the one asked for."""
    options = {**ALL, "oft_block_size": 5}
    loaded = theirs(layers, options)
    stir(loaded)
    loaded.save_pretrained(tmp_path)
    assert_same(answer(PeftModel.from_pretrained(layers(), tmp_path)), answer(loaded))


def convolution():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).eval()


def test_a_kernel_starts_as_the_identity_and_merges_as_hf_peft_s(tmp_path):
    """HF PEFT's forward pass of a kernel above 1 is no identity at the start; its merged weight is the paper's."""
    options, x = {"target_modules": ["0"], "oft_block_size": 4}, torch.randn(2, 4, 5, 5)
    loaded = theirs(convolution, options)
    assert not torch.allclose(answer(loaded, x), answer(convolution(), x), atol=1e-2)
    assert_same(answer(get_peft_model(convolution(), OFTConfig(**options)), x), answer(convolution(), x))
    stir(loaded)
    loaded.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(convolution(), tmp_path)
    expected = answer(loaded.merge_and_unload(), x)
    assert_same(answer(ours, x), expected)
    assert_same(answer(ours.merge_and_unload(), x), expected)
    ours = get_peft_model(convolution(), OFTConfig(**options))
    perturb(ours, scale=0.25)
    ours.save_pretrained(tmp_path)
    assert_same(answer(load_there(convolution, tmp_path).merge_and_unload(), x), answer(ours, x))


def test_two_rotations_act_in_the_order_of_the_list():
    """HF PEFT's forward pass and its merged weight apply them in opposite orders; the merged one is the list's."""
    options = {"target_modules": ["project"], "oft_block_size": 4}
    here, there = get_peft_model(layers(), OFTConfig(**options), "a"), theirs(layers, options)
    here.add_adapter("b", OFTConfig(**options))
    there.add_adapter("b", peft.OFTConfig(**options))
    for name, theirs_name in (("a", "default"), ("b", "b")):
        perturb(here, name, seed=ord(name))
        there.load_state_dict(
            {
                f"base_model.model.project.oft_R.{theirs_name}.weight": here.get_parameter(
                    f"base_model.model.project.adapters.{name}.oft_R.weight"
                )
            },
            strict=False,
        )
    here.set_adapter(["a", "b"])
    there.base_model.set_adapter(["default", "b"])
    forward = answer(there)
    there.merge_adapter(["default", "b"])
    assert not torch.allclose(forward, answer(there), atol=1e-4)
    assert_same(answer(here), answer(there))
    here.merge_adapter()
    assert_same(answer(here), answer(there))


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(256, 8), nn.Embedding(8, 256), nn.Conv2d(64, 8, 2)], ids=repr)
def test_the_start_has_hf_peft_s_distribution(layer, init):
    options = {"target_modules": ["0"], "init_weights": init}
    here = get_peft_model(nn.Sequential(layer), OFTConfig(**options))
    mine = [p for p in here.parameters() if p.requires_grad]
    here.unload()
    other = [p for p in theirs(lambda: nn.Sequential(layer), options).parameters() if p.requires_grad]
    assert [p.shape for p in mine] == [p.shape for p in other]
    for own, other_one in zip(mine, other, strict=True):
        assert own.std().item() == pytest.approx(other_one.std().item(), rel=0.1)
        assert abs(own.mean().item()) <= 0.1 * own.std().item()
