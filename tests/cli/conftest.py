"""Commands run in this process, on tiny models and adapters in folders."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from peftcore import PeftConfig, get_peft_model
from peftcore.cli.app import app

ROOT = Path(__file__).parents[2]


def run_command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs a command; the result has exit_code, stdout and stderr."""
    return run_command


@pytest.fixture
def run_json() -> Callable[..., Any]:
    """Runs a command that has to succeed, with --json, and returns what it wrote."""

    def run(*arguments: object) -> Any:
        result = run_command(*arguments, "--json")
        assert result.exit_code == 0, result.stderr or result.exception
        return json.loads(result.stdout)

    return run


@pytest.fixture
def refused() -> Callable[..., str]:
    """Runs a command that has to fail with one clear line on standard error, and returns the line."""

    def run(*arguments: object) -> str:
        result = run_command(*arguments)
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.exception)
        assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
        assert result.stdout == ""
        return result.stderr

    return run


@pytest.fixture
def in_new_process() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs Python in a new process, where other distributions may be installed."""

    def run(*arguments: str, paths: Iterator[Path] | tuple[Path, ...] = (), **environ: str) -> Any:
        path = os.pathsep.join(map(str, (ROOT, *paths)))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environ}
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)

    return run


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 61, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.fixture
def base_model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def outline(base: Path, tmp_path: Path) -> Path:
    """A folder with the config of the tiny model, and no weights."""
    folder = tmp_path / "outline"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


@pytest.fixture
def save(tmp_path: Path, base: Path) -> Callable[..., Path]:
    """Saves an adapter, none of whose parameters is zero, for the tiny model."""

    def save(config: PeftConfig, name: str = "adapter") -> Path:
        frozen = tiny_llama()
        frozen.name_or_path = str(base)
        model = get_peft_model(frozen, config)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2, generator=generator)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12)
