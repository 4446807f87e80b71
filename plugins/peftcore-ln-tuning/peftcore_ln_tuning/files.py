"""How files name the tensors of a copy.

A layer's own tensors stand under ``ln_tuning_layers`` (``ln_tuning_layers.weight``).
What lies inside a container stands under a name more, that of the adapter in HF PEFT, which does not take it out there
(``ln_tuning_layers.default.0.weight``) and reads no other form.
So here it is always ``default``, whatever the adapter is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

_INSIDE = re.compile(r"(.*\.ln_tuning_layers)\.[^.]+(\.[^.]+\..+)")


class SavedCopy(nn.Module):
    """Holds a module's tensors, not copies of them, under the names that files have."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.ln_tuning_layers = own = module
        if module._modules:
            self.ln_tuning_layers = own = nn.Module()
            own.__dict__.update({name: module.__dict__[name] for name in ("_parameters", "_buffers")})
            own._non_persistent_buffers_set = module._non_persistent_buffers_set
            own.default = nn.Module()
            own.default.__dict__["_modules"] = module._modules


def with_one_name(state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return a file's tensors with what lies inside containers under ``default``; None if all of it does."""
    renamed = {_INSIDE.sub(r"\1.default\2", key): value for key, value in state.items()}
    return None if renamed.keys() == state.keys() else renamed
