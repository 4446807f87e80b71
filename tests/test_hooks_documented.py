"""Every hook stands in docs/hooks.md with its exact signature, has an example that runs, and has a test."""

import inspect
import re
from pathlib import Path

import pytest

from peftcore import hookspecs
from peftcore.plugin_loading import new_manager

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "hooks.md").read_text()
HOOKS = {
    name: function
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if hasattr(function, f"{hookspecs.PROJECT}_spec")
}
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"(?m)^## ", PAGE)[1:]}


def blocks(hook):
    """Return the Python code blocks in a hook's section of the page."""
    return re.findall(r"(?ms)^```python\n(.*?)^```", SECTIONS[hook])


def signature(function):
    """Return a function's line up to the colon, with the spacing that short and broken lines have in common."""
    return re.sub(r"\s+", "", f"def {function.__name__}{inspect.signature(function)}".replace("'", ""))


def test_the_manager_knows_exactly_these_hooks():
    assert {name for name in vars(new_manager().hook) if not name.startswith("_")} == HOOKS.keys()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented_with_its_signature(hook):
    assert hook in SECTIONS, f"docs/hooks.md has no section on {hook}"
    assert re.sub(r"\s+", "", blocks(hook)[0]) == signature(HOOKS[hook])
    assert f"[`{hook}`](#{hook})" in PAGE, f"the table in docs/hooks.md leaves {hook} out"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_an_example_that_peftcore_accepts(hook):
    class Plugin:
        pass

    namespace = {"__name__": "an_example"}
    exec(blocks(hook)[1], namespace)
    setattr(Plugin, hook, staticmethod(namespace[hook]))
    manager = new_manager()
    manager.register(Plugin)
    manager.check_pending()
    assert len(getattr(manager.hook, hook).get_hookimpls()) == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_s_docstring_says_when_what_and_how(hook):
    text = inspect.getdoc(HOOKS[hook])
    assert "calls it" in text
    assert "Example::" in text
    for argument in inspect.signature(HOOKS[hook]).parameters:
        assert f"{argument}: " in text


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_test(hook):
    sources = [path.read_text() for path in (TESTS / "registry").glob("test_*.py")]
    assert any(f"def test_{hook}" in source for source in sources), f"no test is named test_{hook}..."


def test_the_page_documents_no_hook_that_is_not_there():
    documented = {title for title in SECTIONS if re.fullmatch(r"[a-z_]+", title)}
    assert documented == HOOKS.keys()
