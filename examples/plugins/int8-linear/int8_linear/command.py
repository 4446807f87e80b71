"""``peftcore int8-error``: what eight bits would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def int8_error(
    file: Annotated[
        Path, typer.Argument(help="A file of weights, in safetensors format.", exists=True, dir_okay=False)
    ],
) -> None:
    """Say how far each matrix in a file would be from itself in eight bits."""
    from safetensors import safe_open

    from int8_linear.layer import quantised

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # it is no mapping
            weight = tensors.get_tensor(name)
            if weight.dim() == 2 and weight.is_floating_point():
                integers, scale = quantised(weight.float())
                error = (integers * scale - weight).norm() / weight.norm()
                print(f"{name}: {error:.2%}")
