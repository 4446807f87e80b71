"""Writes docs/methods.md: what every method in plugins/ is, read from the registry, and how long it is.

    python3 tools/generate_methods.py           write
    python3 tools/generate_methods.py --check   write nothing; fail if the page is not current

Runs in the development environment, where every plugin and the pinned HF PEFT are installed.
HF PEFT is not imported: the lines of its files are counted, and nothing more.
"""

import ast
import contextlib
import importlib.metadata
import importlib.util
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.cli.description import describe
from peftcore.exceptions import PluginError, TargetError
from peftcore.method import PeftMethod
from peftcore.prompts import PromptEncoder
from peftcore.registry import registry

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs") / "methods.md"

#: What some methods must be told beside the layers.
NEEDED: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 1000},
    "adaption_prompt": {"adapter_len": 10, "adapter_layers": 1},
    "cpt": {"cpt_token_ids": list(range(10))},
    "trainable_tokens": {"token_indices": [0]},
}
#: What prompt methods are told, for the number of their trainable parameters.
VIRTUAL_TOKENS = {"num_virtual_tokens": 10}

#: Where trainable parameters are counted: the first that the method adapts. What adapts a norm is made for norms.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.LayerNorm(1024),
    "Linear": lambda: nn.Linear(1024, 1024),
    "Embedding": lambda: nn.Embedding(1024, 1024),
    "LlamaAttention": lambda: llama_attention(),
}


def llama_attention() -> nn.Module:
    """Returns an attention whose sixteen heads are as wide, together, as the other layers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    return LlamaAttention(LlamaConfig(hidden_size=1024, num_attention_heads=16), layer_idx=0)


INTRODUCTION = """\
# Methods

Every method is a plugin; this page is written by `tools/generate_methods.py` from what the plugins say of themselves.
Trainable parameters are those of the default config on a `Linear` of 1024 × 1024 features, or on the layer \
that stands beside the number.
Every method takes part in mixed batches; the frozen layer then runs once where all adapters are deltas, or scale by \
vectors, and else once per adapter.
"""

PROMPTS = """\
## Prompt methods

These put virtual tokens into a model's calls, as embeddings in front of the tokens' or as keys and values in every \
layer's cache, and change no weight: there is nothing to merge.
In a mixed batch each row has its own virtual tokens, in any numbers.
Trainable parameters are those of ten virtual tokens in a GPT-2 of 124 million parameters.
"""

LENGTHS = """\
## Lengths

Lines of Python without docstrings, comments and blank lines: of the plugin's package, and of the method's folder in \
HF PEFT {version}.
HF PEFT's folders also hold what is the core's or an extension's here (kinds of layers, quantisation), and LoRA's \
holds variants that this version does not have.
What methods share stands outside both.
"""


# ------------------------------------------------------------------------------------------------ methods


def plugin_folders(root: Path) -> dict[str, Path]:
    """Returns {method: folder of its plugin} for everything in plugins/, sorted, or ends with what can't be loaded."""
    folders = {path.parent.name: path.parent for path in root.glob("plugins/*/pyproject.toml")}
    found: dict[str, Path] = {}
    for status in registry.status():
        if status.distribution in folders:
            if status.state not in ("available", "loaded"):
                sys.exit(f"{status.distribution} is {status.state}: {status.cause}")
            found.update(dict.fromkeys(status.methods, folders[status.distribution]))
    missing = {name for name, path in folders.items() if has_methods(path)} - {path.name for path in found.values()}
    if missing:
        sys.exit(f"Not installed: {', '.join(sorted(missing))}. `python3 tools/dev.py test` installs every plugin.")
    return dict(sorted(found.items()))


def has_methods(folder: Path) -> bool:
    return "[project.entry-points.peftcore]" in (folder / "pyproject.toml").read_text(encoding="utf-8")


def load(name: str) -> PeftMethod:
    try:
        return registry[name]
    except PluginError as error:
        sys.exit(str(error))


def adapter_cls(method: PeftMethod) -> type[Adapter]:
    if method.adapter_cls is None:
        sys.exit(f"{method.name} has neither adapter_cls nor encoder_cls, so no table has columns for it.")
    return method.adapter_cls


def is_prompt(name: str) -> bool:
    return load(name).encoder_cls is not None


def paper(source: str | None) -> str:
    if source is None:
        return "–"
    arxiv = re.fullmatch(r"\d{4}\.\d{4,5}", source)
    return f"[{source}](https://arxiv.org/abs/{source})" if arxiv else f"<{source}>"


def kinds(adapter: type[Adapter]) -> str:
    others = sorted(adapter.kinds - MATRIX_KINDS)
    usual = [kind for kind in ("linear", "conv1d", "conv2d", "conv3d", "embedding") if kind in adapter.kinds]
    return ", ".join([*usual, *sorted(adapter.kinds & MATRIX_KINDS - set(usual)), *others])


def count(method: PeftMethod, build: Callable[[], nn.Module], layers: int = 1) -> int:
    """Returns how many parameters train on so many layers alike."""
    with torch.device("meta"):
        model = nn.ModuleList(nn.ModuleDict({"layer": build()}) for _ in range(layers))
    needed = dict(NEEDED.get(method.name, {}))
    if "adapter_layers" in needed:
        needed["adapter_layers"] = layers
    config = method.config_cls(target_modules=["layer"], **needed)  # type: ignore[call-arg]
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def counted_on(method: PeftMethod) -> tuple[str, Callable[[], nn.Module]]:
    """Returns the first of LAYERS that a method adapts."""
    for name, build in LAYERS.items():
        with contextlib.suppress(TargetError):
            count(method, build)
            return name, build
    sys.exit(f"{method.name} adapts none of the layers that its parameters could be counted on.")


def trainable(method: PeftMethod) -> str:
    """Returns how many parameters train, and what was asked for if it is not the default on a Linear."""
    layer, build = counted_on(method)
    needed = [f"`{name}={value}`" for name, value in NEEDED.get(method.name, {}).items()]
    notes = ", ".join([layer] * (layer != "Linear") + needed)
    return f"{count(method, build):,}" + (f" ({notes})" if notes else "")


def shared_state(method: PeftMethod) -> str:
    if method.shared_cls is not None:
        return "per model"
    _, build = counted_on(method)
    return "between layers" if count(method, build, 2) < 2 * count(method, build) else "no"


def trainable_in_gpt2(method: PeftMethod) -> str:
    """Returns how many parameters of a prompt method train in the smallest GPT-2, whose own are not made."""
    import transformers

    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    options = NEEDED.get(method.name, VIRTUAL_TOKENS)
    adapted = get_peft_model(model, method.config_cls(task_type="CAUSAL_LM", **options))  # type: ignore[arg-type]
    return f"{sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad):,}"


# ---------------------------------------------------------------------------------------------- lengths


def code_lines(source: str) -> int:
    """Returns the number of lines that hold code: no docstring, no comment, not blank."""
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent and not (token.type == tokenize.STRING and token.start in docstrings):
            lines.update(range(token.start[0], token.end[0] + 1))
    text = source.splitlines()
    return sum(bool(text[line - 1].strip()) for line in lines)


def length(folder: Path) -> int:
    return sum(code_lines(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))


def package(folder: Path) -> Path:
    return folder / folder.name.replace("-", "_")


def other_library(root: Path) -> tuple[str, Path]:
    """Returns HF PEFT's pinned version and the folder of its methods, or ends if that version is not installed."""
    requirements = (root / "requirements-dev.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"^peft==(\S+)$", requirements, re.M)
    spec = importlib.util.find_spec("peft")
    installed = importlib.metadata.version("peft") if spec else "none"
    if pinned != [installed] or spec is None or not spec.submodule_search_locations:
        sys.exit(f"The table needs peft=={' or '.join(pinned)} (requirements-dev.txt); installed: {installed}.")
    return installed, Path(spec.submodule_search_locations[0]) / "tuners"


# ------------------------------------------------------------------------------------------------- page


def table(head: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[str] = ()) -> str:
    head, right = list(head), set(right)
    rule = ["---:" if name in right else "---" for name in head]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *rows])


def method_row(name: str, folder: Path) -> list[str]:
    method = load(name)
    adapter, said = adapter_cls(method), describe(method)
    return [
        f"[`{name}`](../plugins/{folder.name})",
        f"`{said.family}`",
        paper(method.paper),
        kinds(adapter),
        said.mergeable,
        "once" if said.mixed_batch == "1 pass" else "per adapter",
        shared_state(method),
        trainable(method),
        str(length(package(folder))),
    ]


def method_table(folders: dict[str, Path]) -> str:
    head = ["method", "family", "paper", "layers", "mergeable", "mixed batch", "shared state"]
    counted = ["trainable parameters", "lines"]
    rows = (method_row(name, folder) for name, folder in folders.items() if not is_prompt(name))
    return table([*head, *counted], rows, right=counted)


def prompt_row(name: str, folder: Path) -> list[str]:
    method = load(name)
    encoder = method.encoder_cls
    assert encoder is not None and issubclass(encoder, PromptEncoder)
    return [
        f"[`{name}`](../plugins/{folder.name})",
        paper(method.paper),
        "keys and values" if encoder.makes_prefix() else "embeddings",
        ", ".join(f"`{argument}`" for argument in sorted(encoder.call_arguments)) or "–",
        trainable_in_gpt2(method),
        str(length(package(folder))),
    ]


def prompt_table(folders: dict[str, Path]) -> str:
    counted = ["trainable parameters", "lines"]
    rows = (prompt_row(name, folder) for name, folder in folders.items() if is_prompt(name))
    return table(["method", "paper", "virtual tokens", "arguments of a call", *counted], rows, right=counted)


def length_table(folders: dict[str, Path], others: Path) -> str:
    lengths = [
        (name, length(package(folder)), length(others / name))
        for name, folder in folders.items()
        if (others / name).is_dir()
    ]
    lengths.append(("all", sum(own for _, own, _ in lengths), sum(other for _, _, other in lengths)))
    rows = ([name if name == "all" else f"`{name}`", str(own), str(other)] for name, own, other in lengths)
    return table(["method", "peftcore", "HF PEFT"], rows, right=["peftcore", "HF PEFT"])


def page(root: Path) -> str:
    folders = plugin_folders(root)
    version, others = other_library(root)
    parts = [INTRODUCTION, method_table(folders), PROMPTS, prompt_table(folders)]
    parts += [LENGTHS.format(version=version), length_table(folders, others)]
    return "\n".join(parts)


def main(arguments: list[str], root: Path = ROOT) -> None:
    path, text = root / PAGE, page(root)
    current = path.is_file() and path.read_text(encoding="utf-8") == text
    if "--check" in arguments and not current:
        sys.exit(f"Not current: {PAGE.as_posix()}. Run `python3 tools/generate_methods.py` in the environment (.venv).")
    if not current:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
