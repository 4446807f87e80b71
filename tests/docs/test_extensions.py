"""docs/writing-an-extension.md, and the packages in examples/plugins that it is about."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pages import DOCS, ROOT, Block, Shell, blocks

PAGE = (DOCS / "writing-an-extension.md").read_text(encoding="utf-8")
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/plugins/*/pyproject.toml"))


def installed(package: Path, site: Path) -> None:
    """Build a package's wheel and unpack it, which is what installing it does."""
    target = site.parent / f"{package.name}-wheel"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=package, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def run(*command: str | Path, cwd: Path, site: Path) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("package", EXAMPLES, ids=lambda package: package.name)
def test_an_example_s_own_tests_pass(package: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    installed(package, site)
    # Away from the sources, so that what was built is what is tested.
    (tmp_path / "run").mkdir()
    options = ["-q", "-p", "no:cacheprovider", "-c", package / "pyproject.toml", "--rootdir", tmp_path / "run"]
    written = run(sys.executable, "-m", "pytest", *options, package / "tests", cwd=tmp_path / "run", site=site)
    assert re.search(r"\d passed", written), written


def test_there_is_one_example_of_each_sort() -> None:
    points = {package.name: dict(entry_points(package)) for package in EXAMPLES}
    assert all(not name.startswith("peftcore") for name in points)
    assert {len(methods.get("peftcore", ())) for methods in points.values()} == {0, 1, 2}
    assert [name for name, groups in points.items() if "peftcore" not in groups] == ["int8-linear"]


def entry_points(package: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each group of entry points, and the names in it."""
    text = (package / "pyproject.toml").read_text(encoding="utf-8")
    for group, lines in re.findall(r'(?m)^\[project\.entry-points\."?([\w.]+)"?\]\n((?:\w.*\n)+)', text):
        yield group, [line.partition(" ")[0] for line in lines.splitlines()]


@pytest.mark.slow
def test_all_examples_work_in_one_process(tmp_path: Path) -> None:
    for package in EXAMPLES:
        installed(package, tmp_path / "site")
    code = """
import torch
from torch import nn
from bottleneck_adapters import ParallelAdapterConfig
from int8_linear import Int8Linear
from peftcore import get_peft_model
from peftcore.registry import registry
from ssf_tuning import SSFConfig

model = get_peft_model(nn.Sequential(Int8Linear(nn.Linear(6, 4))), SSFConfig(target_modules=["0"]))
model.add_adapter("beside", ParallelAdapterConfig(target_modules=["0"]))
model.set_adapter(["default", "beside"])
model(torch.randn(3, 6)).sum().backward()
print({status.distribution: status.state for status in registry.status() if "peftcore" not in status.distribution})
"""
    states = run(sys.executable, "-c", code, cwd=tmp_path, site=tmp_path / "site").splitlines()[-1]
    assert states == str({name: "loaded" for name in ("bottleneck-adapters", "int8-linear", "ssf-tuning")})


FILES = [pytest.param(block, id=f"{number}-{block.title}") for number, block in enumerate(blocks(PAGE)) if block.title]


@pytest.mark.parametrize("block", FILES)
def test_an_excerpt_stands_in_its_file(block: Block) -> None:
    assert block.title
    assert block.text.strip("\n") in (ROOT / block.title).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_subcommand_writes_what_the_page_shows(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (package,) = (package for package in EXAMPLES if package.name == "int8-linear")
    installed(package, tmp_path / "site")
    save_file({"exact": torch.arange(-127, 128).float().repeat(2, 1)}, tmp_path / "model.safetensors")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "peftcore").write_text(f"#!{sys.executable}\nfrom peftcore.cli import main\nmain()\n")
    (tmp_path / "bin" / "peftcore").chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])
    shell = Shell(tmp_path, tmp_path, PATH=path, PYTHONPATH=str(tmp_path / "site"))
    for block in blocks(PAGE):
        if block.language == "console":
            shell.follow(block)


def test_every_block_of_the_page_is_looked_at() -> None:
    assert len(re.findall(r"(?m)^ *```", PAGE)) == 2 * len(blocks(PAGE))
    assert all(block.title or block.language == "console" for block in blocks(PAGE))
