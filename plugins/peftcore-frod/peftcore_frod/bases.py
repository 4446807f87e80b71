"""FrodBases: the bases that an adapter's layers share, one for all layers of one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from peftcore.adapters.parts import whole_layer
from peftcore.adapters.singular import wide_matrix
from peftcore.adapters.sparse import check_places
from peftcore.adapters.sparse_product import Pattern
from peftcore.base_layers import BaseLayer
from peftcore.exceptions import CheckpointError
from peftcore.progress import progress
from peftcore_frod.config import FrodConfig


class Tensors(nn.Module):
    """Frozen tensors by name."""

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]  # type: ignore[return-value]


class FrodBases(nn.Module):
    """The bases V, and the places of the entries of S.

    Args:
        config: The method's config.
        bases: The views of all layers that the adapter is going to stand on.
        categories: Their categories, see :func:`category_of`; by default, all are of one.
        found_in_file: Whether a file is going to bring the bases, so that none has to be found.

    Layers of one category with different numbers of inputs have a basis for each number, which HF PEFT can't.

    Attributes:
        frod_V: By category, V ``[in, in]``.
        frod_s_indices: Rows and columns of S's entries, ``[2, n]``.
        frod_s_size: S's size, ``[2]``, which files have beside.
        inverse: V⁻¹; no file has this, nor what follows.
        orders, beginnings: How S's entries are to be read, see :class:`peftcore.adapters.sparse_product.Pattern`.
    """

    def __init__(
        self,
        config: FrodConfig,
        bases: Sequence[BaseLayer],
        categories: Sequence[str] = (),
        *,
        found_in_file: bool = False,
    ) -> None:
        super().__init__()
        self._categories = _named(bases, categories or ["all"] * len(bases))
        self.frod_V, self.frod_s_indices, self.frod_s_size = Tensors(), Tensors(), Tensors()
        self.inverse, self.orders, self.beginnings = Tensors(), Tensors(), Tensors()
        groups: dict[str, list[BaseLayer]] = {}
        for base, category in self._categories.items():
            groups.setdefault(category, []).append(base)
        generator = Generator("cpu").manual_seed(config.projection_prng_key)
        waiting: Iterable[str] = progress(groups, "Decomposing weights") if config.progressbar else groups
        for category in waiting:
            weights = [wide_matrix(base) for base in groups[category]]
            basis = _placeholder(weights[0]) if found_in_file else common_basis(weights, config.regularization_alpha)
            indices = places(len(basis), config.sparse_rate, generator).to(basis.device)
            size = torch.tensor(basis.shape, device=basis.device)
            for held, tensor in ((self.frod_V, basis), (self.frod_s_indices, indices), (self.frod_s_size, size)):
                held.register_buffer(category, tensor, persistent=config.save_projection)
            self._follow(category, torch.linalg.inv(basis.double()).to(basis), indices)

    def category(self, base: BaseLayer) -> str:
        """Return a layer's category; parts of a fused layer have that layer's."""
        return self._categories[whole_layer(base)]

    def pattern(self, category: str) -> Pattern:
        """Return where a category's S has its entries."""
        return Pattern(self.frod_s_indices[category], self.orders[category], self.beginnings[category])

    def lengths(self, base: BaseLayer) -> Tensor:
        """Return the lengths of the columns of W · V⁻ᵀ, which is U · Λ: Λ's diagonal ``[in]`` as it is at first."""
        inverse = self.inverse[self.category(base)]
        return torch.linalg.vector_norm(wide_matrix(base).to(inverse) @ inverse.mT, dim=0)

    def announce(self, state: Mapping[str, Tensor]) -> None:
        """Get ready for the bases that a file brings.

        Args:
            state: The file's tensors, by their names there.

        Raises:
            CheckpointError: A basis is none, or a place lies outside of S.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for category, held in self.frod_V.named_buffers():
            basis = state.get(f"base_model.frod_V.{category}", held)
            places = state.get(f"base_model.frod_s_indices.{category}", self.frod_s_indices[category])
            check_places(f"base_model.frod_s_indices.{category}", places, held.shape, "S")
            if basis.shape != held.shape or places.shape != self.frod_s_indices[category].shape:
                continue  # they are going to be refused
            inverse, failed = torch.linalg.inv_ex(basis.to(held.device, torch.float64))
            if failed.item() or not inverse.isfinite().all():
                raise CheckpointError(f"base_model.frod_V.{category} is no basis: it has no inverse.")
            found[category] = inverse.to(held), places.to(held.device)
        for category, follows in found.items():
            self._follow(category, *follows)

    def _follow(self, category: str, inverse: Tensor, indices: Tensor) -> None:
        """Hold what follows from a basis and from places."""
        _, orders, beginnings = Pattern.of(indices, inverse.shape)
        for held, tensor in ((self.inverse, inverse), (self.orders, orders), (self.beginnings, beginnings)):
            held.register_buffer(category, tensor, persistent=False)


def category_of(path: str) -> str:
    """Return what a file calls the basis of a layer: the last two components of its path, without numbers in front.

    The names are HF PEFT's, in which BERT's attention output has one of its own.
    """
    components = path.split(".")
    if components[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return "_".join(name for n, name in enumerate(components[-2:]) if len(components) == 1 or n or not name.isdigit())


def common_basis(weights: Sequence[Tensor], damping: float) -> Tensor:
    """Return a basis V ``[in, in]`` that fits all of some weights, W = U · Σ · Vᵀ with columns of U of length 1.

    It is that of the higher-order generalized singular value decomposition (arXiv 2102.09822): of the weights one above
    the other as Q · R, and with the eigenvectors Z of the mean of (QᵢᵀQᵢ + damping · I)⁻¹, V is Rᵀ · Z.
    Where the weights together have not full rank, V is that of the singular value decomposition of all of them.

    Args:
        weights: ``[any, in]`` each.
        damping: Above 0.
    """
    stacked = torch.cat(list(weights))
    q, r = torch.linalg.qr(stacked)
    heights = r.diagonal().abs()
    if len(stacked) < stacked.shape[1] or heights.min() <= 1e-6 * heights.max():
        return torch.linalg.svd(stacked).Vh.mT.contiguous()
    if len(weights) == 1:
        return r.mT.contiguous()  # any Z is one of eigenvectors
    damped = damping * torch.eye(q.shape[1], device=q.device, dtype=q.dtype)
    mean = torch.zeros_like(damped)
    for part in q.split([len(weight) for weight in weights]):
        mean += torch.cholesky_inverse(torch.linalg.cholesky(part.mT @ part + damped))
    return r.mT @ torch.linalg.eigh(mean / len(weights)).eigenvectors


def places(size: int, share: float, generator: Generator) -> Tensor:
    """Return rows and columns ``[2, n]`` of so many places of a matrix, none on its diagonal and none twice."""
    others = size * (size - 1)
    count = min(max(1, int(share * size * size)), others)
    drawn = torch.randperm(others, generator=generator, device="cpu")[:count]
    rows, columns = drawn // max(1, size - 1), drawn % max(1, size - 1)
    return torch.stack([rows, columns + (columns >= rows)])


def _named(bases: Sequence[BaseLayer], categories: Sequence[str]) -> dict[BaseLayer, str]:
    """Return the layers' categories, with the number of inputs in their names where it differs within one."""
    sizes: dict[str, set[int]] = {}
    for base, category in zip(bases, categories, strict=True):
        sizes.setdefault(category, set()).add(base.matrix_shape[1])
    return {
        base: category if len(sizes[category]) == 1 else f"{category}_{base.matrix_shape[1]}"
        for base, category in zip(bases, categories, strict=True)
    }


def _placeholder(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[1], device=weight.device, dtype=weight.dtype)
