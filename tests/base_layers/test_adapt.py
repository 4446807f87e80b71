"""Which layers the core knows, and which it leaves to extensions."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from peftcore.base_layers import SUPPORTED, adapt

KNOWN = {
    "linear": lambda: nn.Linear(3, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(4, 6, 3, groups=2),
    "embedding": lambda: nn.Embedding(7, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
}


class Renamed(nn.Linear):
    """A subclass with a constructor of its own."""

    def __init__(self, size):
        super().__init__(size, size + 1)


class FromElsewhere(nn.Module):
    __module__ = "transformers.pytorch_utils"
    __qualname__ = "Conv1D"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.bias = nn.Parameter(torch.randn(5))


def test_each_kind_is_known_by_its_class():
    assert {kind: adapt(make()).kind for kind, make in KNOWN.items()} == {kind: kind for kind in KNOWN}
    for make in KNOWN.values():
        assert type(make()).__name__ in SUPPORTED


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_a_view_knows_sizes_and_storage(make):
    layer = make()
    base = adapt(layer)
    assert base.layer is layer
    assert base.weight_shape == base.weight().shape
    assert base.out_features == base.weight_shape[0]
    assert base.in_features == base.weight_shape[1] * base.groups
    assert base.matrix_shape == tuple(base.weight().reshape(base.out_features, -1).shape)
    assert base.weight().data_ptr() == getattr(layer, base.weight_name).data_ptr()
    layer.to(torch.bfloat16)
    assert (base.dtype, base.device) == (torch.bfloat16, torch.device("cpu"))
    layer.to("meta")
    assert base.device.type == "meta"


def test_subclasses_are_known_by_their_ancestor():
    base = adapt(Renamed(3))
    assert (base.kind, base.in_features, base.out_features) == ("linear", 3, 4)
    assert adapt(nn.modules.linear.NonDynamicallyQuantizableLinear(3, 5)).kind == "linear"


def test_a_transposed_linear_layer_is_known_by_its_name():
    base = adapt(FromElsewhere())
    assert (base.kind, base.in_features, base.out_features) == ("linear", 3, 5)
    transformers = pytest.importorskip("transformers.pytorch_utils")
    assert type(adapt(transformers.Conv1D(5, 3))) is type(base)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 1),
        nn.EmbeddingBag(4, 4),
        nn.LayerNorm(4),
        nn.Bilinear(2, 2, 2),
        nn.Identity(),
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        nn.LazyLinear(4),
        nn.LazyConv2d(4, 1),
        parametrizations.weight_norm(nn.Linear(3, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_not_known_is_left_to_others(layer):
    assert adapt(layer) is None


def packed_integers(layer):
    layer.weight = nn.Parameter(torch.zeros(8, 2, dtype=torch.uint8), requires_grad=False)


def packed_floats(layer):
    layer.weight = nn.Parameter(torch.zeros(8, 2), requires_grad=False)


def packed_rows(layer):
    layer.weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def float8(layer):
    layer.weight = nn.Parameter(torch.zeros(8, 4).to(torch.float8_e4m3fn), requires_grad=False)


def flattened(layer):
    layer.weight = nn.Parameter(torch.zeros(32), requires_grad=False)


def own_class(layer):
    class Quantised(nn.Parameter):
        """A parameter that knows more than its values."""

    layer.weight = torch.Tensor._make_subclass(Quantised, torch.zeros(8, 4))


def buffer(layer):
    del layer.weight
    layer.register_buffer("weight", torch.zeros(8, 4))


@pytest.mark.parametrize("store", [packed_integers, packed_floats, packed_rows, float8, flattened, own_class, buffer])
def test_a_weight_that_is_not_dense_is_left_to_extensions(store):
    layer = nn.Linear(4, 8)
    assert adapt(layer) is not None
    store(layer)
    assert adapt(layer) is None


def test_adapting_leaves_the_layer_alone():
    layer = nn.Linear(3, 5)
    before = dict(layer.__dict__), dict(layer._parameters)
    adapt(layer)
    assert (dict(layer.__dict__), dict(layer._parameters)) == before


def test_classes_are_found_once():
    class Once(nn.Linear):
        """Looked up by its ancestors."""

    from peftcore.base_layers import _view_of

    adapt(Once(2, 2))
    known = _view_of.cache_info().misses
    for _ in range(10):
        adapt(Once(2, 2))
    assert _view_of.cache_info().misses == known
