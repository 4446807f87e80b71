"""Subspaces: what a frozen weight's outputs have in common, cluster by cluster."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peftcore.base_layers import BaseLayer
from peftcore_adamss.config import AdamssConfig


class Subspaces(NamedTuple):
    """A weight's right singular vectors, and the parts of their space that clusters of its outputs lie in.

    Attributes:
        basis: V ``[r, in · kernel]``, or ``[r, in · kernel + 1]`` where there is a bias.
        outputs: By cluster, which outputs belong to it.
        directions: By cluster, orthonormal rows ``[rank, r]``: combinations of V's vectors, the strongest first.
    """

    basis: Tensor
    outputs: list[Tensor]
    directions: list[Tensor]


def find_subspaces(base: BaseLayer, bias: Tensor | None, config: AdamssConfig) -> Subspaces:
    """Decompose a frozen weight.

    Files do not say which outputs belong together. So everything here has to give the same each time, and the same as
    in HF PEFT: it is computed on the CPU, in float32, with the same seed.

    Args:
        base: The layer.
        bias: Its bias ``[out]``, which counts as one more column of the weight, or None.
        config: The method's config.

    Raises:
        ConfigError: The layer has too few outputs, or too few different ones, or too small a rank.
    """
    out, into = base.matrix_shape
    columns = into if bias is None else into + 1
    _check(config, "subspace_rank", config.subspace_rank, min(out, columns), f"singular values of a {base}")
    if not config.inference_mode:  # HF PEFT makes fewer clusters then, so its files do load
        _check(config, "num_subspaces", config.num_subspaces, out, f"outputs of a {base}")
    r, number = min(config.r, out, columns), min(config.num_subspaces, out)
    weight, device = base.weight().detach(), base.device
    if weight.is_meta or torch.empty(0).is_meta:
        outputs = list(torch.arange(out).tensor_split(number))
        directions = [torch.empty(min(config.subspace_rank, len(part)), r, device="meta") for part in outputs]
        return Subspaces(torch.empty(r, columns, device="meta"), outputs, directions)
    weight = weight.reshape(out, into)
    framed = weight if bias is None else torch.cat([weight, bias.detach().unsqueeze(1)], 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.random_seed)
        basis, outputs, directions = _decomposed(framed.to("cpu", torch.float32), r, number, config)
    alike = f"clusters of the outputs of a {base}, of which some are equal"
    _check(config, "num_subspaces", number, number_found(framed, outputs), alike)
    return Subspaces(basis.to(device), [part.to(device) for part in outputs], [rows.to(device) for rows in directions])


def _decomposed(matrix: Tensor, r: int, number: int, config: AdamssConfig) -> Subspaces:
    left, _, right = torch.svd_lowrank(matrix, q=r, niter=2)
    outputs = clusters(left, number)
    return Subspaces(right.mT.contiguous(), outputs, [leading_directions(left[part], config) for part in outputs])


def _check(config: AdamssConfig, field: str, asked: int, most: int, what: str) -> None:
    if asked > most:
        config.refuse(field, f"{asked} is above the {most} {what}: choose at most {most}, or exclude the layer")


def clusters(points: Tensor, number: int) -> list[Tensor]:
    """Return which points belong together, by ten rounds of k-means from points that are always the same.

    Args:
        points: ``[n, any]``, on the CPU.
        number: How many clusters to find; some are empty if fewer points are different.
    """
    # Imported where it is used, so that importing the plugin stays cheap.
    from sklearn.cluster import KMeans

    means = KMeans(number, init="random", n_init=1, max_iter=10, random_state=123456789)
    labels = torch.from_numpy(means.fit_predict(points.numpy()))
    return [(labels == label).nonzero().squeeze(1) for label in range(number)]


def number_found(rows: Tensor, found: list[Tensor]) -> int:
    """Return how many clusters of a weight's rows mean something: no more than there are different rows."""
    different = len(torch.unique(rows[:, 0]))
    if different < len(found):  # otherwise that is enough to know, and sooner known
        different = len(torch.unique(rows, dim=0))
    return min(different, sum(len(part) > 0 for part in found))


def leading_directions(points: Tensor, config: AdamssConfig) -> Tensor:
    """Return the strongest directions of some points ``[n, r]``, as orthonormal rows ``[rank, r]``."""
    rank = min(config.subspace_rank, len(points))
    # Some directions more than are needed, since those at the end are found less exactly.
    _, values, directions = torch.svd_lowrank(points, q=min(rank + 8, *points.shape), niter=2)
    if config.use_dynamic_rank:
        strong = int((values.square() > config.svd_threshold * values[0].square()).sum())
        rank = max(1, min(rank, strong))
    return directions[:, :rank].mT.contiguous()
