"""``peftcore merge``: an adapter folded into its base model's weights, as a model of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from peftcore.cli.output import AsJson, show, write_json
from peftcore.cli.writing import check_new, new_directory
from peftcore.exceptions import CheckpointError
from peftcore.views import View, number

#: What a model's folder holds beside the model, for those who use it: tokenizers and processors.
BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*processor_config.json",
)


def merge(
    base: Annotated[str, typer.Argument(help="The base model: a folder, or owner/name on the hub.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter directory.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base model's weights, and write the model."""
    check_new(out)
    if not adapter.is_dir():
        raise CheckpointError(f"{adapter} is no folder. Name a folder that holds adapter_config.json.")
    from peftcore.cli.base_models import load_base
    from peftcore.config import PeftConfig
    from peftcore.model import PeftModel

    config = PeftConfig.from_pretrained(adapter)
    holder = PeftModel.from_pretrained(load_base(base, config), adapter, config=config)
    layers = holder.get_model_status().num_adapter_layers
    merged = holder.merge_and_unload(safe_merge=True)
    with new_directory(out) as folder:
        merged.save_pretrained(folder)  # type: ignore[operator]
        copied = _copy_beside(Path(base), folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if as_json:
        write_json({"out": str(out), "layers": layers, "bytes": size, "copied": copied})
    else:
        show(View(str(out), notes=[f"{number(layers)} layers merged; {number(size)} bytes written.", *_said(copied)]))


def _copy_beside(base: Path, folder: Path) -> list[str]:
    """Copy tokenizers and processors from the base model's folder, and return their names."""
    if not base.is_dir():
        return []
    found = {file.name: file for pattern in BESIDE for file in base.glob(pattern) if file.is_file()}
    missing = sorted(name for name in found if not (folder / name).exists())
    for name in missing:
        shutil.copyfile(found[name], folder / name)
    return missing


def _said(copied: list[str]) -> list[str]:
    return [f"Copied from the base model: {', '.join(copied)}."] if copied else []
