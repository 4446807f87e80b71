"""Wheels of the core and of a plugin, built and used away from this tree."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [ROOT, ROOT / "plugins" / "peftcore-lora"]

pytestmark = [pytest.mark.slow]

# Runs in the new environment. Nothing of it may come from the source tree.
USE = """
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import nn

import peftcore
from peftcore import LoraConfig, PeftModel, get_peft_model

import peftcore_lora

site_packages, folder = map(Path, sys.argv[1:])
for package, name in [(peftcore, "peftcore"), (peftcore_lora, "peftcore-lora")]:
    assert Path(package.__file__).is_relative_to(site_packages), package.__file__
    assert distribution(name).locate_file("").resolve() == site_packages, name
    assert "editable" not in (distribution(name).read_text("direct_url.json") or "")

def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

x = torch.randn(4, 6)
model = get_peft_model(base(), LoraConfig(r=2, target_modules=["0", "2"]))
before = model(x)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
for _ in range(2):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
assert not torch.equal(model(x), before)
model.save_pretrained(folder)
torch.testing.assert_close(PeftModel.from_pretrained(base(), folder)(x), model(x), rtol=0, atol=0)
print("used")
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution of each project, and the wheel built from that."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def bare(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the two wheels in it, that borrows all else (PyTorch first) from the running one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    site_packages = site_packages_of(folder)
    wheels = sorted(built.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site_packages]
    run(*install, *wheels, cwd=folder)
    # Python does not follow path files found there: those of the editable installs, which lead to this tree.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def site_packages_of(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})).resolve()


def test_the_wheels_work_in_a_bare_environment(bare: Path, tmp_path: Path) -> None:
    python = bare / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    script = tmp_path / "use.py"
    script.write_text(USE, encoding="utf-8")
    assert run(python, script, site_packages_of(bare), tmp_path / "adapter", cwd=tmp_path).split() == ["used"]


def test_wheels_and_source_distributions_hold_license_and_type_marker(built: Path) -> None:
    for project, package in zip(PROJECTS, ["peftcore", "peftcore_lora"], strict=True):
        (wheel,) = built.glob(f"{package}-*.whl")
        (source,) = built.glob(f"{package}-*.tar.gz")
        expected = (project / "LICENSE").read_bytes()
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            (license_file,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
            assert archive.read(license_file) == expected
        with tarfile.open(source) as archive:
            licenses = [
                archive.extractfile(name) for name in archive.getnames() if name.count("/") == 1 and "LICENSE" in name
            ]
            assert [file.read() for file in licenses if file] == [expected]
        assert f"{package}/py.typed" in names
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {package}
