"""``peftcore convert``: an adapter as an adapter of another method, of low rank."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcore.cli.output import AsJson, show, write_json
from peftcore.cli.writing import check_new, new_directory
from peftcore.exceptions import BaseModelError, CheckpointError
from peftcore.views import View

if TYPE_CHECKING:
    from peftcore.config import PeftConfig
    from peftcore.conversion import Conversion
    from peftcore.model import PeftModel


def convert(
    adapter: Annotated[Path, typer.Argument(help="The adapter directory.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    to: Annotated[str, typer.Option("--to", help="The method that it becomes.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="The rank that it gets on each layer.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, if not the one that the adapter names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter that does nearly the same by another method, and show the relative error on each layer."""
    check_new(out)
    if not adapter.is_dir():
        raise CheckpointError(f"{adapter} is no folder. Name a folder that holds adapter_config.json.")
    from peftcore.checkpoint import writer_of
    from peftcore.config import PeftConfig
    from peftcore.conversion import check_takes_factors
    from peftcore.conversion import convert as converted
    from peftcore.files import write_directory
    from peftcore.registry import registry

    config = PeftConfig.from_pretrained(adapter)
    method = registry[to].name
    check_takes_factors(method)
    conversion = converted(_opened(adapter, config, _base(base, config)), "default", method, rank)
    with new_directory(out) as folder:
        write_directory(folder, conversion.state, conversion.config, writer_of(method))
    if as_json:
        errors = [asdict(layer) for layer in conversion.errors]
        write_json({"out": str(out), "method": method, "rank": rank, "error": conversion.error, "layers": errors})
    else:
        show(_view(out, conversion))


def _base(given: str | None, config: PeftConfig) -> str:
    reference = given or config.base_model_name_or_path
    if not reference:
        raise BaseModelError("The adapter does not say which base model it is for; name it with --base.")
    return reference


def _opened(adapter: Path, config: PeftConfig, reference: str) -> PeftModel:
    """Put the adapter into its base model: without weights if they are not needed."""
    from peftcore.cli.base_models import load_base, outline
    from peftcore.conversion import needs_weights
    from peftcore.model import PeftModel

    try:
        holder = PeftModel.from_pretrained(outline(reference, config), adapter, config=config, low_cpu_mem_usage=True)
        if not needs_weights(holder.base_model.tuner("default")):
            return holder
    except (NotImplementedError, RuntimeError):  # what torch says of values that the meta device lacks
        pass
    return PeftModel.from_pretrained(load_base(reference, config), adapter, config=config)


def _view(out: Path, conversion: Conversion) -> View:
    rows = [(layer.key, f"{layer.norm:.4g}", f"{layer.error:.3g}") for layer in conversion.errors]
    return View(
        str(out),
        ("layer", "norm", "relative error"),
        rows,
        [f"Relative error of all layers together: {conversion.error:.3g}."],
    )
