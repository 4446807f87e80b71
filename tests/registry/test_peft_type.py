"""PeftType: an open enumeration that behaves as a string."""

import copy
import json
import pickle

import pytest

from peftcore import PeftType, TaskType
from peftcore.catalog import catalog
from peftcore.exceptions import RegistrationError, UnknownMethodError


@pytest.fixture(autouse=True)
def _listed():
    catalog.add("some_method")
    yield
    catalog.discard("some_method")


def test_every_way_to_a_member_gives_the_same_object():
    member = PeftType.SOME_METHOD
    assert member is PeftType("some_method") is PeftType("SOME_METHOD") is PeftType("Some-Method")
    assert member is PeftType["SOME_METHOD"] is PeftType["some_method"] is PeftType(member) is PeftType[member]
    assert member is PeftType.declare("some_method")


def test_a_member_is_its_string():
    member = PeftType.SOME_METHOD
    assert member == "SOME_METHOD" == member.value == member.name == str(member) == f"{member}"
    assert type(member.value) is type(member.name) is type(str(member)) is str
    assert hash(member) == hash("SOME_METHOD")
    assert {"SOME_METHOD": 1}[member] == 1
    assert repr(member) == "<PeftType.SOME_METHOD: 'SOME_METHOD'>"
    assert member.method == "some_method"
    assert isinstance(member, PeftType)


def test_json_pickle_copy():
    member = PeftType.SOME_METHOD
    assert json.loads(json.dumps({"peft_type": member, member: 1})) == {"peft_type": "SOME_METHOD", "SOME_METHOD": 1}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(member, protocol)) is member
    assert copy.copy(member) is member
    assert copy.deepcopy([member])[0] is member


def test_the_class_lists_what_the_catalog_has():
    assert [member.method for member in PeftType] == list(catalog.names())
    assert len(PeftType) == len(catalog.names())
    assert PeftType.SOME_METHOD in PeftType
    assert "some_method" in PeftType
    assert "no_such_method" not in PeftType
    assert 3 not in PeftType
    assert "SOME_METHOD" in dir(PeftType)
    catalog.discard("some_method")
    assert "some_method" not in PeftType
    assert "SOME_METHOD" not in dir(PeftType)
    assert PeftType


def test_unknown_names():
    with pytest.raises(AttributeError, match="NO_SUCH_METHOD"):
        PeftType.NO_SUCH_METHOD  # noqa: B018
    with pytest.raises(AttributeError, match="upper case"):
        PeftType.some_method  # noqa: B018
    for error in (UnknownMethodError, ValueError):
        with pytest.raises(error, match="no_such_method"):
            PeftType("no_such_method")
    for error in (UnknownMethodError, KeyError):
        with pytest.raises(error, match="no_such_method"):
            PeftType["no_such_method"]
    with pytest.raises(UnknownMethodError, match="3"):
        PeftType(3)


def test_nothing_can_be_changed():
    with pytest.raises(AttributeError, match="read-only"):
        PeftType.SOME_METHOD = "OTHER"
    with pytest.raises(AttributeError, match="read-only"):
        del PeftType.SOME_METHOD
    with pytest.raises(AttributeError):
        PeftType.SOME_METHOD.value = "OTHER"
    with pytest.raises(AttributeError):
        PeftType.SOME_METHOD.colour = "red"
    with pytest.raises(TypeError, match="subclassed"):
        type("Mine", (PeftType,), {})


def test_a_declared_method_has_a_member_but_is_not_listed_until_registered():
    declared = PeftType.declare("declared_only")
    assert declared == "DECLARED_ONLY"
    assert declared not in PeftType
    with pytest.raises(AttributeError):
        PeftType.DECLARED_ONLY  # noqa: B018
    catalog.add("declared_only")
    try:
        assert PeftType.DECLARED_ONLY is declared
    finally:
        catalog.discard("declared_only")


def test_declaring_a_bad_name_is_refused():
    with pytest.raises(RegistrationError, match="'Bad-Name'"):
        PeftType.declare("Bad-Name")


def test_probing_dunders_and_lower_case_names_costs_no_scan(run_python):
    code = """
from peftcore.peft_type import PeftType
from peftcore.catalog import catalog
assert not any(hasattr(PeftType, name) for name in ("__wrapped__", "_ipython_display_", "shape"))
assert catalog._listing is None
"""
    run_python(code)


def test_listing_imports_no_plugin(run_python):
    code = """
import sys
from peftcore import PeftType
names = [member.name for member in PeftType]
assert {"GOOD", "BROKEN", "CONTESTED", "FIRST", "SECOND"} <= set(names), names
assert "BAD-NAME" not in names and len(PeftType) == len(names) and PeftType.BROKEN in PeftType
assert set(names) <= set(dir(PeftType))
print([name for name in sys.modules if name.startswith(("fake_", "peftcore_"))])
"""
    assert run_python(code, "good", "broken", "rival_one", "rival_two", "two_methods", "bad_name") == "[]"


def test_pickles_travel_to_where_the_plugin_is_and_to_where_it_is_not(run_python):
    written = run_python(
        "import pickle; from peftcore import PeftType; print(pickle.dumps(PeftType.GOOD).hex())", "good"
    )
    read = f"import pickle; from peftcore import PeftType; member = pickle.loads(bytes.fromhex('{written}'));"
    assert run_python(f"{read} print(member is PeftType.GOOD, member)", "good") == "True GOOD"
    assert (
        run_python(f"{read} print(member in PeftType, member == 'GOOD', repr(member))")
        == "False True <PeftType.GOOD: 'GOOD'>"
    )


def test_a_disabled_method_is_not_listed_and_says_why(run_python):
    code = """
from peftcore import PeftType
from peftcore.exceptions import PluginDisabledError
assert "good" not in PeftType and not hasattr(PeftType, "GOOD")
try:
    PeftType("good")
except PluginDisabledError as error:
    print(error)
"""
    assert "fake-good 1.2" in run_python(code, "good", PEFTCORE_DISABLED_PLUGINS="good")


def test_task_types_are_plain_strings():
    assert TaskType("SEQ_CLS") is TaskType.SEQ_CLS == "SEQ_CLS"
    assert {member.name for member in TaskType} == {member.value for member in TaskType}
