"""The catalog: pure functions over entry points, and what is kept of them."""

import importlib_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st
from importlib_metadata import EntryPoint

from peftcore import catalog as room
from peftcore.catalog import Catalog, Claim, disabled_names, first_party_plugins, list_plugins, name_problem, nearest
from peftcore.exceptions import PluginConflictError, PluginDisabledError, UnknownMethodError


class FakeDistribution(importlib_metadata.Distribution):
    """A distribution that counts how often its metadata is read."""

    reads = 0

    def __init__(self, name, version="1.0"):
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        if filename == "METADATA":
            type(self).reads += 1
            return self._text
        return None

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _count_from_zero():
    FakeDistribution.reads = 0


def entry_point(name, distribution="fake-one", group="peftcore", value="some.module", version="1.0"):
    return EntryPoint(name, value, group)._for(FakeDistribution(distribution, version))


def catalog_of(*entry_points, disabled=""):
    return Catalog(lambda: entry_points, {room.DISABLED_VARIABLE: disabled})


def test_claims_of_one_plugin_agree_in_distribution_and_object():
    one, sibling = Claim(entry_point("one")), Claim(entry_point("sibling"))
    assert one.is_of(sibling)
    assert not one.is_of(Claim(entry_point("one", distribution="fake-two")))
    FakeDistribution.reads = 0
    assert not Claim(entry_point("one")).is_of(Claim(entry_point("one", value="another.module")))
    assert FakeDistribution.reads == 0  # as there may be many plugins, and reading takes long


def test_sorts_entry_points_by_group_and_passes_over_foreign_ones():
    listing = list_plugins(
        [
            entry_point("zeta"),
            entry_point("alpha"),
            entry_point("tables", group="peftcore.extensions"),
            entry_point("console", group="console_scripts"),
        ]
    )
    assert list(listing.methods) == ["alpha", "zeta"]
    assert [claim.name for claim in listing.extensions] == ["tables"]
    assert listing.disabled == listing.findings == ()


def test_a_former_name_stands_for_the_present_one_unless_a_method_has_it():
    renamed = entry_point("old", group="peftcore.former_names", value="new")
    assert catalog_of(entry_point("new"), renamed).current_name("OLD") == "new"
    assert catalog_of(entry_point("new"), renamed, entry_point("old", "another")).current_name("old") == "old"
    assert catalog_of().current_name("Old") == "old"
    assert "old" not in catalog_of(entry_point("new"), renamed)


def test_listing_reads_no_metadata():
    listing = list_plugins([entry_point(f"method_{n}", f"fake-{n}") for n in range(44)])
    assert len(listing.methods) == 44
    assert FakeDistribution.reads == 0


def test_one_distribution_seen_twice_is_no_conflict():
    listing = list_plugins(
        [entry_point("alpha", "Fake_One", value="first"), entry_point("alpha", "fake-one", value="second")]
    )
    assert [claim.value for claim in listing.methods["alpha"]] == ["first"]


def test_two_distributions_with_one_name_conflict_and_both_are_named():
    catalog = catalog_of(
        entry_point("alpha", "fake-one", version="1.5"), entry_point("alpha", "fake-two", version="2.5")
    )
    assert catalog.names() == ("alpha",)
    with pytest.raises(PluginConflictError, match=r"fake-one 1\.5 .* and by fake-two 2\.5"):
        catalog.claim("alpha")


def test_disabling_one_rival_settles_the_conflict():
    catalog = catalog_of(entry_point("alpha", "fake-one"), entry_point("alpha", "fake-two"), disabled="fake-one")
    assert catalog.claim("alpha").distribution == "fake-two"


@pytest.mark.parametrize("variable", ["alpha", "ALPHA", " beta , alpha,", "fake-one", "Fake_One"])
def test_disabled_by_method_or_by_distribution(variable):
    catalog = catalog_of(entry_point("alpha"), entry_point("gamma", "fake-two"), disabled=variable)
    assert catalog.names() == ("gamma",)
    with pytest.raises(PluginDisabledError, match=r"'alpha' of fake-one 1\.0.*PEFTCORE_DISABLED_PLUGINS"):
        catalog.claim("alpha")


def test_disabled_extension_is_left_out():
    listing = list_plugins([entry_point("tables", group="peftcore.extensions")], disabled_names("tables"))
    assert listing.extensions == ()
    assert [claim.name for claim in listing.disabled] == ["tables"]


@pytest.mark.parametrize("name", ["Alpha", "al-pha", "al pha", "2alpha", "alpha_", "_alpha", "al__pha", "älpha", ""])
def test_a_bad_name_is_a_finding_and_no_method(name):
    catalog = catalog_of(entry_point(name), entry_point("beta"))
    assert catalog.names() == ("beta",)
    (finding,) = catalog.listing.findings
    assert finding.claim.name == name
    assert repr(name) in finding.problem


def test_asking_for_a_badly_named_method_tells_whose_fault_it_is():
    with pytest.raises(UnknownMethodError, match=r"fake-one 1\.0 .*'Al-pha'.*author"):
        catalog_of(entry_point("Al-pha")).claim("al_pha")


@given(st.from_regex(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", fullmatch=True))
def test_every_good_name_survives_the_way_to_a_type_and_back(name):
    assert name_problem(name) is None
    assert room.canonical(name) == room.canonical(name.upper()) == name


def test_unknown_method_suggests_near_names_and_guesses_no_package():
    catalog = catalog_of(entry_point("alpha"), entry_point("beta"))
    with pytest.raises(UnknownMethodError, match="'alpha'") as caught:
        catalog.claim("alhpa")
    assert "pip install" not in str(caught.value)
    assert "documentation" in str(caught.value)


def test_near_names_come_nearest_first():
    assert nearest("alphaa", ["alp", "alpha", "omega"])[0] == "alpha"


def test_first_party_plugins_are_read_from_the_extras():
    requirements = [
        "torch>=2.4",
        'peftcore-alpha>=0.1,<0.2; extra == "alpha"',
        "peftcore-prefix-beta ; extra == 'prefix-beta'",
        'peftcore-alpha; extra == "all"',
        'typer; extra == "cli"',
    ]
    assert first_party_plugins(requirements) == {"alpha": "peftcore-alpha", "prefix_beta": "peftcore-prefix-beta"}


def test_a_missing_first_party_method_gets_its_pip_line(monkeypatch):
    monkeypatch.setattr(importlib_metadata, "requires", lambda name: [f'{name}-alpha; extra == "alpha"'])
    with pytest.raises(UnknownMethodError, match=r"pip install peftcore-alpha$"):
        catalog_of().claim("ALPHA")


def test_without_installed_metadata_there_is_no_first_party_knowledge(monkeypatch):
    def not_installed(name):
        raise importlib_metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib_metadata, "requires", not_installed)
    assert catalog_of().first_party() == {}


def test_a_claim_without_metadata_can_still_be_named():
    claim = Claim(EntryPoint("alpha", "some.module", "peftcore"))
    assert str(claim) == "(unknown distribution) (unknown version) (entry point alpha = some.module)"


def test_scans_once_until_refreshed(environment):
    catalog = environment.registry.catalog
    assert environment.scans == 0
    assert catalog.names() == ()
    environment.install("good")
    assert catalog.names() == ()
    assert environment.scans == 1
    catalog.refresh()
    assert catalog.names() == ("good",)
    assert environment.scans == 2


def test_refresh_reads_the_variable_again(environment):
    catalog = environment.install("good").catalog
    assert "good" in catalog
    environment.environ[room.DISABLED_VARIABLE] = "good"
    assert "good" in catalog
    catalog.refresh()
    assert "good" not in catalog


def test_in_process_methods_are_listed_until_discarded():
    catalog = catalog_of(entry_point("beta"))
    catalog.add("alpha")
    assert catalog.names() == ("alpha", "beta")
    assert "ALPHA" in catalog
    catalog.discard("alpha")
    assert catalog.names() == ("beta",)
    assert 3 not in catalog
