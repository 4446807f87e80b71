"""HRAAdapter: a chain of Householder reflections of what a layer is given."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from peftcore.adapters.orthogonal import OrthogonalTransform, turned_size
from peftcore.adapters.starts import uniform
from peftcore.base_layers import BaseLayer
from peftcore_hra.config import HRAConfig


class HRAAdapter(OrthogonalTransform):
    """Householder reflection adaptation of one layer, R = H₁ · … · H_r (arXiv 2405.17484).

    The chain is applied as a whole: R = I − V·T·Vᵀ with the unit vectors V, where T is triangular and
    T⁻¹ = I/2 + the upper triangle of VᵀV (Schreiber and Van Loan, 1989, in the form of Joffrain et al., 2006).

    Attributes:
        hra_u: The vectors, ``[n, r]``, of any lengths. A vector of zeros reflects nothing.

    Raises:
        ConfigError: ``apply_GS`` is asked for with more vectors than there are directions.
    """

    def __init__(self, base: BaseLayer, config: HRAConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        size, self.apply_gs = turned_size(base), config.apply_GS
        if config.apply_GS and config.r > size:
            config.refuse("r", f"{config.r} vectors can't be orthogonal in the {size} dimensions of a {base}")
        self.hra_u = nn.Parameter(_start(size, config))

    def factors(self) -> Tensor:
        """Return V and V·T, ``[2, n, r]``."""
        u = self.hra_u.to(torch.promote_types(self.hra_u.dtype, torch.float32))
        if self.apply_gs:
            v = torch.linalg.qr(u).Q
            return torch.stack((v, 2 * v))
        v = nn.functional.normalize(u, dim=0)
        half = torch.eye(v.shape[1], device=v.device, dtype=v.dtype) / 2
        inverse = (v.mT @ v).triu(1) + half
        return torch.stack((v, torch.linalg.solve_triangular(inverse, v, upper=True, left=False)))

    def turn(self, vectors: Tensor, factors: Tensor, back: bool) -> Tensor:
        """Return R·x = x − V·T·Vᵀ·x, or Rᵀ·x."""
        v, vt = factors
        return vectors - vectors @ vt @ v.mT if back else vectors - vectors @ v @ vt.mT

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.hra_u.shape[1]}, apply_GS={self.apply_gs}"


def _start(size: int, config: HRAConfig) -> Tensor:
    # Gram-Schmidt leaves nothing of a vector that equals the one before.
    pairs = config.init_weights and config.r % 2 == 0 and not config.apply_GS
    if config.init_weights and not pairs and not config.inference_mode:
        reason = "orthogonal reflections" if config.apply_GS else "an odd number of reflections"
        warnings.warn(f"HRA starts away from the frozen model: {reason} can't undo each other.", stacklevel=2)
    number = config.r // 2 if pairs else config.r
    u = uniform(size, number)
    return u.repeat_interleave(2, dim=1) if pairs else u
