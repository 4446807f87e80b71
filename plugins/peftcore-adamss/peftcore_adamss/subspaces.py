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
    r, number = fitted_rank(base, min(out, columns), config), number_of_clusters(base, config)
    weight = base.weight().detach()
    if weight.is_meta or torch.empty(0).is_meta:
        outputs = list(torch.arange(out).tensor_split(number))
        directions = [torch.empty(min(config.subspace_rank, len(part)), r, device="meta") for part in outputs]
        return Subspaces(torch.empty(r, columns, device="meta"), outputs, directions)
    weight = weight.reshape(out, into)
    framed = weight if bias is None else torch.cat([weight, bias.detach().unsqueeze(1)], 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.random_seed)
        left, _, right = torch.svd_lowrank(framed.to("cpu", torch.float32), q=r, niter=2)
    outputs = clusters(left, number)
    if (different := number_found(framed, outputs)) < number:
        problem = f"the outputs of a {base} fall into {different} clusters, since some are equal"
        config.refuse("num_subspaces", f"{problem}: choose at most {different}, or exclude the layer")
    device = base.device
    directions = [leading_directions(left[part], config).to(device) for part in outputs]
    return Subspaces(right.mT.to(device).contiguous(), [part.to(device) for part in outputs], directions)


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
    values, vectors = torch.linalg.eigh((points.mT @ points).double())
    rank = min(config.subspace_rank, len(points))
    if config.use_dynamic_rank:
        strong = int((values > config.svd_threshold * values[-1]).sum())
        rank = max(1, min(rank, strong))
    return vectors[:, -rank:].flip(-1).mT.float().contiguous()


def fitted_rank(base: BaseLayer, most: int, config: AdamssConfig) -> int:
    """Return how many singular vectors are taken of a weight that has at most so many.

    Raises:
        ConfigError: They are fewer than a cluster's rank.
    """
    if config.subspace_rank > most:
        problem = f"{config.subspace_rank} is above the {most} singular values of a {base}"
        config.refuse("subspace_rank", f"{problem}: choose at most {most}, or exclude the layer")
    return min(config.r, most)


def number_of_clusters(base: BaseLayer, config: AdamssConfig) -> int:
    """Return into how many clusters a layer's outputs fall.

    Raises:
        ConfigError: There are fewer outputs. HF PEFT makes fewer clusters then, so its files do load for inference.
    """
    out, number = base.matrix_shape[0], config.num_subspaces
    if number > out and not config.inference_mode:
        problem = f"{number} clusters are more than the {out} outputs of a {base}"
        config.refuse("num_subspaces", f"{problem}: choose at most {out}, or exclude the layer")
    return min(number, out)
