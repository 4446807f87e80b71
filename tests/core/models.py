"""Small models, and what the tests ask of them."""

import torch
from torch import nn


class Net(nn.Module):
    """Two linear layers and a head, for inputs ``[batch, 5]``."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 6)
        self.two = nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Words(nn.Module):
    """An embedding, a layer and a head, for tokens ``[batch, length]`` below 11; the head may share the weight."""

    def __init__(self, tied=False, head_bias=False):
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.lin = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=head_bias)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.lin(self.emb(ids))))

    def get_input_embeddings(self):
        return self.emb

    def get_output_embeddings(self):
        return self.head


class Single(nn.Module):
    """One module under the name ``layer``."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def differs(actual, expected):
    assert (actual - expected).abs().max() > 1e-3, "they are equal"


def stir(model, *names):
    """Move everything that adapters train away from its start, so that each part acts."""
    with torch.no_grad():
        for name in names or model.base_model.tuners:
            for parameter in model.base_model.tuner(name).parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def without_gradient(model):
    """Names of the parameters that should train and got no gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def anatomy(model):
    """All that tells whether a model is the one it was: modules, attributes, tensors, their values, modes, hooks."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {
        "modules": {path: id(module) for path, module in modules.items()},
        "attributes": {path: sorted(vars(module)) for path, module in modules.items() if not _is_ours(module)},
        "training": {path: module.training for path, module in modules.items()},
        "hooks": {
            path: len(module._forward_hooks) + len(module._forward_pre_hooks) for path, module in modules.items()
        },
        "tensors": {name: (id(tensor), tensor.requires_grad) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
    }


def _is_ours(module):
    return type(module).__module__.startswith("peftcore")


def assert_as_before(model, before, exact=True):
    """Check a model against its anatomy; not exact: after sums were added and subtracted, up to rounding."""
    after = anatomy(model)
    values, old_values = after.pop("values"), before["values"]
    assert after == {key: value for key, value in before.items() if key != "values"}
    tolerance = 0.0 if exact else 1e-6
    torch.testing.assert_close(values, old_values, atol=tolerance, rtol=tolerance, equal_nan=True)
