"""The application: what it costs to start, and what becomes of errors and of others' commands."""

import pytest

START = """
import sys
sys.argv = ["peftcore", *{arguments!r}]
from peftcore.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("IMPORTED", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["new", "--help"]], ids=" ".join)
def test_what_needs_no_torch_imports_none_and_no_plugin(in_new_process, arguments):
    done = in_new_process("-c", START.format(arguments=arguments))
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.rpartition("IMPORTED")[2].split())
    assert "peftcore" in imported
    assert not imported & {"torch", "transformers", "numpy"}
    assert not {name for name in imported if name.startswith("peftcore_")}


def test_the_package_imports_torch_with_its_first_public_name(in_new_process):
    code = "import sys, peftcore, peftcore.catalog; assert 'torch' not in sys.modules; peftcore.PeftModel; "
    done = in_new_process("-c", code + "assert 'torch' in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "from peftcore.config import PeftConfig; print(PeftConfig.from_dict({'peft_type': 'LORA'}).method)",
        "from peftcore.model import PeftModel; from peftcore.config import PeftConfig; "
        "print(PeftModel.class_for(PeftConfig.from_dict({'peft_type': 'LORA', 'task_type': 'CAUSAL_LM'})).__name__)",
        "from peftcore.mappings import PEFT_TYPE_TO_TUNER_MAPPING as m; print(m['LORA'].__name__)",
        "import peftcore; print(peftcore.registry.registry['lora'].name)",
        "from peftcore import *; print(get_peft_model.__name__)",
    ],
)
def test_no_room_depends_on_what_was_imported_before_it(in_new_process, code):
    done = in_new_process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"lora", "PeftModelForCausalLM", "LayerTuner", "get_peft_model"}


def test_without_what_it_needs_it_says_how_to_install_that(in_new_process):
    code = "import sys; sys.modules['typer'] = None; from peftcore.cli import main; main()"
    done = in_new_process("-c", code)
    assert done.returncode == 2
    assert done.stderr == "Error: the command needs typer: pip install 'peftcore[cli]'\n"


def test_the_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="peftcore")
    from peftcore.cli import main

    assert script.load() is main


GOOD = """
from peftcore.hookspecs import hookimpl
@hookimpl
def register_commands(cli):
    @cli.command()
    def bench(times: int) -> None:
        "Time an adapter."
        print("bench", times)
"""
BROKEN = """
from peftcore.hookspecs import hookimpl
@hookimpl
def register_commands(cli):
    raise RuntimeError("no display")
"""
UNBUILDABLE = """
from peftcore.hookspecs import hookimpl
@hookimpl
def register_commands(cli):
    @cli.command()
    def odd(value: int | str) -> None:
        "Can't be made a command."
"""


@pytest.fixture
def extended(tmp_path):
    """Three extensions, of which one adds a command, one fails, and one adds what is no command."""
    for name, source in {"cli_good": GOOD, "cli_broken": BROKEN, "cli_odd": UNBUILDABLE}.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[peftcore.extensions]\n{name} = {name}\n")
        (tmp_path / f"{name}.py").write_text(source)
    return tmp_path


def test_a_plugins_command_runs_and_broken_ones_are_named(in_new_process, extended):
    done = in_new_process("-c", START.format(arguments=["bench", "3"]), paths=(extended,))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bench 3\n")
    assert "cli-broken 1.0" in done.stderr and "no display" in done.stderr
    assert "'odd' of cli_odd" in done.stderr
    assert "Traceback" not in done.stderr and ".py:" not in done.stderr


def test_the_help_lists_plugins_commands(in_new_process, extended):
    done = in_new_process("-c", START.format(arguments=["--help"]), paths=(extended,))
    assert "bench" in done.stdout and "Time an adapter." in done.stdout and "doctor" in done.stdout


def test_the_cores_own_commands_ask_no_plugin(in_new_process, extended):
    done = in_new_process("-c", START.format(arguments=["plugins"]), paths=(extended,))
    assert "cli-broken" in done.stdout and done.stderr == ""
    assert "cli_good" not in done.stdout.rpartition("IMPORTED")[2]


def test_an_unknown_command_is_a_usage_error(run):
    result = run("mergee")
    assert result.exit_code == 2 and "merge" in result.stderr
