"""``peftcore plugins`` and ``peftcore doctor``."""

import json
from pathlib import Path

import pytest

REGISTRY = Path(__file__).parents[1] / "registry" / "distributions"
MAIN = "import sys; from peftcore.cli import main; main()"


def status_of(done, name):
    return {status["distribution"]: status for status in json.loads(done.stdout)}[name]


@pytest.fixture
def installed(in_new_process):
    """Runs a command where some of the registry's fake distributions are installed."""

    def run(*arguments, names, **environ):
        paths = tuple(REGISTRY / name for name in names)
        return in_new_process("-c", MAIN, *arguments, paths=paths, **environ)

    return run


def test_states_are_told_without_importing_anything(installed):
    names = ("good", "rival_one", "rival_two", "bad_name", "broken")
    done = installed("plugins", "--json", names=names, PEFTCORE_DISABLED_PLUGINS="good")
    assert done.returncode == 0, done.stderr
    assert status_of(done, "fake-good")["state"] == "disabled"
    assert status_of(done, "fake-broken")["state"] == "available"
    assert status_of(done, "peftcore-lora")["methods"] == ["lora"]
    states = {status["state"] for status in json.loads(done.stdout)}
    assert states == {"available", "disabled", "conflicting", "broken"}


def test_check_finds_what_is_broken_and_says_why(installed):
    done = installed("plugins", "--check", "--json", names=("broken", "broken_extension"))
    assert done.returncode == 1
    assert status_of(done, "fake-broken")["state"] == "broken" and status_of(done, "fake-broken")["cause"]
    assert status_of(done, "fake-broken-extension")["state"] == "broken"
    assert status_of(done, "peftcore-lora")["state"] == "loaded"


def test_check_is_content_where_all_is_well(run_json):
    statuses = run_json("plugins", "--check")
    assert {status["state"] for status in statuses} <= {"loaded"}


def test_the_table_names_each_plugin_and_each_cause(installed):
    done = installed("plugins", names=("rival_one", "rival_two"))
    assert "peftcore-lora" in done.stdout and "claimed by" in done.stdout and "--check" in done.stdout


def test_the_doctor_names_what_is_wrong_and_what_mends_it(installed):
    done = installed("doctor", "--check", "--json", names=("broken",))
    assert done.returncode == 1
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["fake-broken"]["state"] == "wrong"
    assert "fake-broken" in findings["fake-broken"]["remedy"]
    assert findings["torch"]["state"] == "good" and findings["torch"]["version"]


def test_the_doctor_finds_plugins_made_for_another_core(installed, tmp_path):
    info = tmp_path / "fake_old-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-old\nVersion: 1.0\nRequires-Dist: peftcore>=99\n")
    (info / "entry_points.txt").write_text("[peftcore.extensions]\nold = fake_old\n")
    (tmp_path / "fake_old.py").write_text("")
    done = installed("doctor", "--json", names=(tmp_path,))
    (finding,) = [one for one in json.loads(done.stdout) if one["what"] == "fake-old"]
    assert finding["state"] == "wrong" and ">=99" in finding["problem"]


def test_the_doctor_is_content_here(run):
    result = run("doctor", "--check")
    assert result.exit_code == 0, result.stdout
    assert "All is well." in result.stdout
