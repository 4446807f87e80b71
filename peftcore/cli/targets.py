"""``peftcore targets``: what a config would adapt in a model, without the model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftcore.cli.output import AsJson, show, write_json
from peftcore.views import View, number, share

if TYPE_CHECKING:
    from torch import nn

    from peftcore.config import PeftConfig
    from peftcore.tuner import Tuner


def targets(
    model: Annotated[
        str, typer.Argument(help="A folder with a transformers config.json, such a file, or owner/name on the hub.")
    ],
    config: Annotated[
        str, typer.Argument(help="An adapter directory, an adapter_config.json, or a method's name for its defaults.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if something that the config asks for is not there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a config would adapt: modules, layers, shapes, trainable parameters, and what does not match."""
    from peftcore.cli.base_models import outline
    from peftcore.functional import as_config, inspect_targets

    adapter = as_config(config)
    base = outline(model, adapter)
    total = sum(parameter.numel() for parameter in base.parameters())
    tuner, failed = _built(base, adapter)
    report = inspect_targets(base, adapter) if _adapts_layers(adapter) else None
    failures = report.failures() if report is not None else []
    # What could not be built for the reason that the report gives is said once.
    failures += [failed] if failed and not failures else []
    trainable = None if tuner is None else _by_path(tuner)
    if as_json:
        write_json(_as_dict(report, trainable, total, failures))
    else:
        show(_view(adapter, report, trainable, total, failures))
    if check and failures:
        raise typer.Exit(1)


def _adapts_layers(config: PeftConfig) -> bool:
    from peftcore.registry import registry
    from peftcore.tuner import LayerTuner

    return issubclass(registry.find_tuner_class(str(config.peft_type)), LayerTuner)


def _built(model: nn.Module, config: PeftConfig) -> tuple[Tuner | None, str]:
    """Build the adapter outside the model; return it, or why it can't be."""
    from peftcore.exceptions import PeftCoreError
    from peftcore.registry import registry

    method = registry[str(config.peft_type)]
    tuner: Tuner = registry.find_tuner_class(method.name)(model, "default", config, method)
    try:
        tuner.build(low_cpu_mem_usage=True, on_unmatched="ignore")
    except PeftCoreError as error:
        return None, str(error)
    except (NotImplementedError, RuntimeError) as error:  # what torch says of values that the meta device lacks
        return None, f"The number of trainable parameters depends on the weights: {error}"
    return tuner, ""


def _by_path(tuner: Tuner) -> dict[str, int]:
    """Return how many parameters train at each path, each counted once; what is held once per model stands at ''."""
    seen: set[int] = set()
    found: dict[str, int] = {}
    modules = [("", tuner.shared)] if tuner.shared is not None else []
    for path, module in [*modules, *((placement.path, placement.adapter) for placement in tuner.placements)]:
        new = {id(p): p.numel() for p in module.parameters() if p.requires_grad and id(p) not in seen}
        seen.update(new)
        found[path] = found.get(path, 0) + sum(new.values())
    return found


def _view(config: PeftConfig, report: Any, trainable: dict[str, int] | None, total: int, failures: list[str]) -> View:
    notes = []
    if trainable is not None:
        all_ = sum(trainable.values())
        notes.append(f"{number(all_)} parameters would train, {share(all_, total)} of the model's {number(total)}.")
        matched = {match.path for match in report.matched} if report is not None else set()
        notes += [
            f"{number(count)} of them {f'at {path}' if path else 'once per model'}."
            for path, count in trainable.items()
            if count and path not in matched and report is not None
        ]
    notes += failures
    if report is None:
        return View(f"{config.method} adapts no layers: it changes what goes into the model.", notes=notes)
    view: View = report.view(trainable)
    return View(view.title, view.columns, view.rows, notes)


def _as_dict(report: Any, trainable: dict[str, int] | None, total: int, failures: list[str]) -> dict[str, Any]:
    matched = () if report is None else report.matched
    return {
        "matched": [
            {
                "module": match.path,
                "pattern": match.pattern,
                "parts": list(match.parts),
                "class": type(match.module).__name__,
                "kind": match.layer.kind,
                "weight_shape": list(match.layer.weight_shape),
                "trainable": None if trainable is None else trainable.get(match.path, 0),
            }
            for match in matched
        ],
        "unmatched": {} if report is None else {entry: list(near) for entry, near in report.unmatched.items()},
        "unsupported": [] if report is None else [u.path for u in report.unsupported if u.fatal],
        "trainable": None if trainable is None else sum(trainable.values()),
        "beside": {
            path: count
            for path, count in (trainable or {}).items()
            if count and path not in {match.path for match in matched}
        },
        "total": total,
        "problems": failures,
    }
