"""peftcore new: packages whose tests pass as they are, and refusals that leave nothing behind."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import importlib_metadata
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcore.catalog import Catalog
from peftcore.cli.new import FAMILIES, LICENSES, versions_for, write_package
from peftcore.exceptions import NewPackageError, OutputError

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(package: Path, site: Path) -> Path:
    """Build a package's wheel and unpack it, which is what installing it does."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=package)
    (wheel,) = package.glob("dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tests_of_a_new_package_pass(family: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    write_package("brand_new", family, directory=package)
    site = installed(package, tmp_path / "site")

    written = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package, PYTHONPATH=str(site))

    assert re.search(r"\d\d passed", written), written
    readme = (package / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```", readme)
    assert "trainable params" in run(sys.executable, "-c", block, cwd=tmp_path, PYTHONPATH=str(site))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_package_is_clean_for_the_linter(family: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    write_package("brand_new", family, directory=package)
    style = ["--isolated", "--line-length", "120"]
    rules = ["--select", "E,F,I,UP,B,SIM,D1", "--ignore", "D107", "--per-file-ignores", "tests/*:D1"]
    run(sys.executable, "-m", "ruff", "check", *style, *rules, ".", cwd=package)
    run(sys.executable, "-m", "ruff", "format", *style, "--check", ".", cwd=package)


@pytest.mark.slow
def test_new_packages_are_clean_for_the_type_checker(tmp_path: Path) -> None:
    for family in FAMILIES:
        write_package(f"new_{family}", family, directory=tmp_path / family)
    modules = [f"{family}/peftcore_new_{family}" for family in FAMILIES]
    path = os.pathsep.join(str(tmp_path / family) for family in FAMILIES)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    run(*command, *modules, cwd=tmp_path, MYPYPATH=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_package_has_every_file_and_says_what_is_left_to_do(family: str, tmp_path: Path) -> None:
    files = write_package("brand_new", family, directory=tmp_path / "package")
    names = {file.relative_to(tmp_path / "package").as_posix() for file in files}
    mathematics = {f"peftcore_brand_new/{'encoder' if family == 'prompt' else 'adapter'}.py"}
    marked = {"README.md", "tests/test_conformance.py", "tests/test_mathematics.py"}
    marked |= {"peftcore_brand_new/__init__.py", "peftcore_brand_new/config.py"} | mathematics
    assert names == marked | {
        "pyproject.toml", "LICENSE", ".gitignore", ".github/workflows/test.yml", "peftcore_brand_new/py.typed",
    }  # fmt: skip
    on_disk = [path for path in (tmp_path / "package").rglob("*") if path.is_file()]
    assert sorted(on_disk) == files
    texts = {file.relative_to(tmp_path / "package").as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert {name for name, text in texts.items() if "TODO" in text} == marked
    assert not any("%{" in text for text in texts.values())


@settings(max_examples=30, deadline=None)
@given(name=st.from_regex(r"[a-z][a-z0-9]{0,8}(_[a-z0-9]{1,8}){0,3}", fullmatch=True), family=st.sampled_from(FAMILIES))
def test_any_legal_name_makes_code_that_python_reads(name: str, family: str, tmp_path_factory) -> None:
    if name in Catalog():
        return
    files = write_package(name, family, directory=tmp_path_factory.mktemp("new") / "package")
    for file in files:
        if file.suffix == ".py":
            ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("license", LICENSES)
def test_the_license_is_the_one_that_was_chosen(license: str, tmp_path: Path) -> None:
    write_package("brand_new", license=license, directory=tmp_path / "package")
    assert f'license = "{license}"\n' in (tmp_path / "package" / "pyproject.toml").read_text(encoding="utf-8")
    text = (tmp_path / "package" / "LICENSE").read_text(encoding="utf-8")
    assert license.split("-")[0] in text
    assert re.search(r"Copyright (\(c\) )?20\d\d,? The peftcore-brand-new contributors", text)


def test_the_apache_license_is_the_project_s(tmp_path: Path) -> None:
    write_package("brand_new", directory=tmp_path / "package")
    text = (tmp_path / "package" / "LICENSE").read_text(encoding="utf-8")
    own = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.sub("Copyright 20.*", "", text) == own.replace("Copyright [yyyy] [name of copyright owner]", "")


def test_the_package_goes_with_this_version_of_the_core(tmp_path: Path) -> None:
    write_package("brand_new", directory=tmp_path / "package")
    major, minor = importlib_metadata.version("peftcore").split(".")[:2]
    assert f"peftcore>={major}.{minor},<" in (tmp_path / "package" / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("core", "versions"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3rc1", ">=0.9,<0.10"), ("1.4.2", ">=1.4,<2"), ("0.2.dev3", ">=0.2,<0.3")],
)
def test_a_package_goes_with_versions_that_promise_it(core: str, versions: str) -> None:
    assert versions_for(core) == versions


def test_the_folder_is_called_after_the_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_package("brand_new")
    assert [path.name for path in tmp_path.iterdir()] == ["peftcore-brand-new"]


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SingLoRA", "'singlora'"),
        ("my-method", "'my_method'"),
        ("my method", "'my_method'"),
        ("my__method", "'my_method'"),
        ("3d", ""),
        ("", ""),
        ("../evil", ""),
        ("a/b", ""),
        ("méthode", ""),
        ("_private", ""),
    ],
)
def test_an_illegal_name_is_refused(name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NewPackageError, match="is no method name") as refusal:
        write_package(name)
    assert ("Did you mean" in str(refusal.value)) is bool(hint) and hint in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_installed_method_s_name_is_taken(tmp_path: Path) -> None:
    entry = importlib_metadata.EntryPoint("brand_new", "their_package", "peftcore")
    for disabled in ("", "brand_new"):
        known = Catalog(lambda: [entry], {"PEFTCORE_DISABLED_PLUGINS": disabled})
        with pytest.raises(NewPackageError, match=r"a method 'brand_new' already, in .*brand_new = their_package"):
            write_package("brand_new", directory=tmp_path / "package", known=known)
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_the_core_s_own_plugins_are_taken_even_where_they_are_not_installed(tmp_path: Path) -> None:
    known = Catalog(lambda: [], {})
    for name, distribution in known.first_party().items():
        with pytest.raises(NewPackageError, match=f"{distribution} is a distribution of peftcore's own"):
            write_package(name, directory=tmp_path / "package", known=known)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "broken link"])
def test_what_exists_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "package"
    if kind.endswith("folder"):
        target.mkdir()
    if kind == "folder":
        (target / "pyproject.toml").write_text("theirs")
    if kind == "file":
        target.write_text("theirs")
    if kind == "broken link":
        target.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="exists already"):
        write_package("brand_new", directory=target)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.read_text() == "theirs" for path in before if path.is_file())


def test_a_folder_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere is no folder"):
        write_package("brand_new", directory=tmp_path / "nowhere" / "package")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def fail_late(self: Path, *args: object, **kwargs: object) -> int:
        if self.name == "LICENSE":
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", fail_late)
    with pytest.raises(OutputError, match="package can't be written: No space left on device"):
        write_package("brand_new", directory=tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("family", "deltas"), ("license", "GPL")])
def test_an_unknown_choice_is_refused_with_the_known_ones(field: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(NewPackageError, match=f"no {field} '{value}'; there are (delta|Apache)"):
        write_package("brand_new", directory=tmp_path / "package", **{field: value})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- on the command line


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from peftcore.cli import main; main()", "new", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    done = typed("brand_new", "--family", "scale", "--license", "MIT", "--directory", "my folder", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = [path for path in (tmp_path / "my folder").rglob("*") if path.is_file()]
    assert done.stdout.startswith(f"Wrote {len(files)} files.")
    assert "    cd 'my folder'\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "MIT" in (tmp_path / "my folder" / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SingLoRA"], "Did you mean 'singlora'"),
        (["taken"], "peftcore-taken exists already"),
        (["brand_new", "--family", "x"], "There is no family 'x'"),
        (["brand_new", "--directory", "nowhere/x"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "peftcore-taken").mkdir()
    done = typed(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["peftcore-taken"]


def test_it_does_not_import_torch() -> None:
    code = "import sys, peftcore.cli.new; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT) == "False\n"
