"""The documentation site: it builds, it is whole, it stands on its own host, and what its hooks do."""

import dataclasses
import html
import importlib.util
import inspect
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import griffe
import pytest
from torch import nn

import peftcore.testing
from peftcore import LayerConfig, option, register_peft_method, unregister_peft_method
from peftcore.adapters.delta import WeightDelta
from peftcore.registry import registry
from peftcore.testing import LayerMethodTests

from .pages import DOCS, ROOT, blocks
from .test_stability import NAMES


def hook(name):
    """Imports one of the files in tools/website, as mkdocs does."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "website" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


method_pages = hook("method_pages")
project_pages = hook("project_pages")
repository_links = hook("repository_links")
own_host = hook("own_host")
docstrings = hook("docstrings")

METHODS = {name: folder for folder, names in method_pages.methods_by_plugin(ROOT).items() for name in names}


# ------------------------------------------------------------------------------------------------- the site

built = [pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{address: HTML} of the site's pages, built as strictly as CI builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.relative_to(folder).as_posix(): path.read_text() for path in folder.glob("**/index.html")}
    assert pages
    return folder, pages


class TestSite:
    pytestmark = built

    def test_every_method_has_a_page_with_every_field_of_its_config(self, site):
        _, pages = site
        for name, folder in METHODS.items():
            page = pages[method_pages.address(folder).removesuffix(".md")]
            fields = {field.name for field in dataclasses.fields(registry[name].config_cls)}
            assert {field for field in fields if f"<td><code>{field}</code></td>" not in page} == set(), name

    def test_every_promised_name_stands_in_the_reference(self, site):
        _, pages = site
        anchors = {id for page in pages for id in ids(pages[page]) if page.startswith("reference/")}
        missing = {f"{module}.{name}" for module, names in NAMES.items() for name in names} - anchors
        # A name of two modules stands there once.
        assert {name for name in missing if f"peftcore.{name.rpartition('.')[2]}" not in anchors} == set()

    def test_every_check_of_the_kit_stands_on_its_page(self, site):
        _, pages = site
        suites = [getattr(peftcore.testing, name) for name in peftcore.testing.__all__ if name.endswith("Tests")]
        checks = {name for suite in suites for name in dir(suite) if name.startswith("test_")}
        assert {name for name in checks if f"<code>{name}</code>" not in pages["conformance"]} == set()

    def test_every_change_that_is_not_released_stands_on_its_page(self, site):
        text = words(site[1]["changelog"])
        for fragment in ROOT.glob("changelog.d/*.*.md"):
            first = re.sub(r"`|\[|\]\(.*?\)", "", fragment.read_text().partition("\n")[0])
            assert first in text, fragment.name

    def test_the_navigation_has_every_page(self, site):
        _, pages = site
        listed = {urlsplit(href).path.strip("/") for href in hrefs(pages["."])}
        assert {page for page in pages if not page.startswith("files/") and page != "."} <= listed

    def test_every_link_leads_somewhere(self, site):
        folder, pages = site
        anchors = {page: set(ids(text)) for page, text in pages.items()}
        for page, text in pages.items():
            for href in hrefs(text):
                target = (folder / page / unquote(urlsplit(href).path)).resolve()
                assert target.exists(), (page, href)
                shown = target.relative_to(folder.resolve()).as_posix()
                fragment = unquote(urlsplit(href).fragment)
                assert not fragment or shown not in pages or fragment in anchors[shown], (page, href)

    def test_every_page_has_one_title(self, site):
        for page, text in site[1].items():
            (title,) = re.findall(r"(?s)<h1[ >].*?</h1>", text)
            assert words(title).strip(" ¶"), page

    def test_no_markup_is_left_over(self, site):
        for page, text in site[1].items():
            left = re.findall(r":::|\]\(|:(?:class|meth|func|attr|data|mod):|\*\*|``", words(article(text)))
            assert not left, (page, left)

    def test_nothing_is_fetched_from_another_host(self, site):
        folder, pages = site
        assert {page: found for page, text in pages.items() if (found := own_host.fetched(text))} == {}
        for style in folder.glob("**/*.css"):
            assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", style.read_text()), style.name


def ids(page):
    return [html.unescape(found) for found in re.findall(r'\bid="([^"]+)"', page)]


def hrefs(page):
    """Returns the addresses on this host that a page's links lead to."""
    found = (html.unescape(href) for href in re.findall(r'<a\b[^>]*?\bhref="?([^"\s>]+)', page))
    return [href for href in found if not urlsplit(href).scheme]


def article(page):
    """Returns a page's text without its code."""
    (text,) = re.findall(r"(?s)<article.*?</article>", page)
    return re.sub(r"(?s)<(pre|code)\b.*?</\1>", "", text)


def words(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_every_page_of_the_repository_says_what_it_is():
    for page in DOCS.glob("**/*.md"):
        assert re.match(r"# \S", page.read_text()), page.name


# -------------------------------------------------------------------------------------------- method pages

README = """# peftcore-mine

Before.

| field of `MineConfig` | default | meaning |
|---|---|---|
| `r`, `s` | | how many `a\\|b` |

After.
"""


def test_what_a_readme_says_of_fields_goes_into_the_page_s_table():
    text, said = method_pages.without_table(README)
    assert said == {"r": "how many `a\\|b`", "s": "how many `a\\|b`"}
    assert text == "# peftcore-mine\n\nBefore.\n\nAfter.\n"


def test_fields_have_types_defaults_bounds_and_origin():
    class MineConfig(LayerConfig, method=None):
        r: int = option(8, "Rank_s.", at_least=1)
        s: str | None = option(None, "Other.", extension=True)

    own, shared = method_pages.fields_of("MineConfig", MineConfig, {"s": "said"})[1:4:2]
    assert "| `r` | `int` | `8` | Rank\\_s. (at least 1) | HF&nbsp;PEFT |\n" in own
    assert "| `s` | `str or None` | `None` | Said. | `peftcore` |\n" in own
    assert "`target_modules`" in shared and "`target_modules`" not in own


# ------------------------------------------------------------------------------------------- project pages


def test_changes_that_are_not_released_stand_before_the_versions(tmp_path):
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\nWords.\n\n## 1.0\n\n- Old.\n")
    assert project_pages.changelog(tmp_path).endswith("# Changelog\n\nWords.\n\n\n## 1.0\n\n- Old.\n")
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "changelog.d" / "README.md").write_text("Rules.")
    (tmp_path / "changelog.d" / "one.fix.md").write_text("One.\nTwo.\n")
    (tmp_path / "changelog.d" / "two.breaking.md").write_text("Three.\n")
    page = project_pages.changelog(tmp_path)
    parts = ["Words.", "## Not released yet", "### Breaking", "- Three.", "### Fixed", "- One.\n    Two.", "## 1.0"]
    assert sorted(parts, key=page.index) == parts
    assert "Rules." not in page


def test_every_kind_of_fragment_has_a_heading():
    (said,) = re.findall(r"kind one of (.*)\.\n", (ROOT / "changelog.d" / "README.md").read_text())
    assert re.findall(r"`(\w+)`", said) == list(project_pages.KINDS)


# ----------------------------------------------------------------------------------------------- links

SHOWN = {"plugins/peftcore-mine/README.md": "methods/mine.md", "CONTRIBUTING.md": "contributing.md"}


@pytest.mark.parametrize(
    ("source", "page", "written", "expected"),
    [
        ("docs/methods.md", "methods.md", "[`m`](../plugins/peftcore-mine)", "[`m`](methods/mine.md)"),
        ("docs/guides/a.md", "guides/a.md", "[m](../../plugins/peftcore-mine#b)", "[m](../methods/mine.md#b)"),
        ("docs/guides/a.md", "guides/a.md", "[m](../methods.md)", "[m](../methods.md)"),
        ("docs/a.md", "a.md", "[m](../nowhere.md)", "[m](../nowhere.md)"),
        ("docs/a.md", "a.md", "[m](https://a.b/c) [n](#d)", "[m](https://a.b/c) [n](#d)"),
        ("docs/a.md", "a.md", "```\n[m](../CONTRIBUTING.md)\n```", "```\n[m](../CONTRIBUTING.md)\n```"),
        ("docs/a.md", "a.md", "```\nx\n```\n[m](../CONTRIBUTING.md)", "```\nx\n```\n[m](contributing.md)"),
        ("docs/a.md", "a.md", "[r](../README.md)", "[r](index.md)"),
    ],
)
def test_links_out_of_docs_lead_to_pages(source, page, written, expected):
    assert repository_links.turned(written, source, page, SHOWN) == expected


def test_files_without_a_page_are_shown_as_they_are(tmp_path):
    (tmp_path / "one.py").write_text('"""Text."""\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "two.md").write_text("# Two\n\n```\na\n```\n")
    assert repository_links.text_of(tmp_path, "one.py").endswith('# one.py\n\n```python\n"""Text."""\n```\n')
    assert repository_links.text_of(tmp_path, "more").endswith("# more\n\n- [two.md](more/two.md)\n")
    assert repository_links.text_of(tmp_path, "more/two.md").endswith("# Two\n\n```\na\n```\n")
    assert repository_links.text_of(tmp_path, "nowhere") is None


# ---------------------------------------------------------------------------------------------- own host


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://a.example/b.js"></script>',
        "<link rel=stylesheet href=https://a.example/b.css>",
        '<link rel="preconnect" href="//a.example">',
        '<img alt="" src="http://a.example/b.png">',
        '<pre class="mermaid"><code>graph</code></pre>',
    ],
)
def test_what_would_be_fetched_is_found(tag):
    assert len(own_host.fetched(f"<p>{tag}</p>")) == 1


@pytest.mark.parametrize("tag", ['<a href="https://a.example">', '<img src="../b.png">', '<script src="b.js">'])
def test_links_and_own_files_are_not_fetched_from_elsewhere(tag):
    assert own_host.fetched(tag) == []


def test_what_would_be_fetched_fails_a_strict_build():
    assert own_host.log.name.startswith("mkdocs.")  # whose warnings --strict counts


# ------------------------------------------------------------------------------------------- docstrings


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("See :meth:`fold`.", "See `fold`."),
        ("A :class:`Tuner`, :func:`place()`.", "A `Tuner`, `place`."),
        (
            ":class:`~peftcore.model.PeftModel`",
            '<autoref identifier="peftcore.model.PeftModel" optional><code>PeftModel</code></autoref>',
        ),
        ("Do::\n\n    x = 1\n\n    y = 2\n\nMore.", "Do:\n\n```python\nx = 1\n\ny = 2\n```\n\nMore."),
        ("Plain ``code``: text.\n\nMore.", "Plain ``code``: text.\n\nMore."),
    ],
)
def test_docstrings_become_markdown(written, shown):
    assert docstrings.as_markdown(written) == shown


def test_fields_and_commented_attributes_have_docstrings(tmp_path):
    lines = [
        "class Mine:",
        "    #: Says :meth:`more`,",
        "    #: on two lines.",
        "    kinds = 1",
        "    silent = 2",
        '    r: int = option(8, "Rank.", at_least=1)',
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    extensions = griffe.load_extensions(docstrings.Docstrings)
    mine = griffe.load("mine", search_paths=[str(tmp_path)], extensions=extensions)["Mine"]
    assert mine["kinds"].docstring.value == "Says `more`,\non two lines."
    assert mine["silent"].docstring is None
    assert (mine["r"].docstring.value, str(mine["r"].value)) == ("Rank.", "8")


# -------------------------------------------------------------------------------------- docs/conformance.md

KIT = (DOCS / "conformance.md").read_text(encoding="utf-8")


class HalvedConfig(LayerConfig, method="halved"):
    pass


class HalvedAdapter(WeightDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.halved_delta = nn.Parameter(base.weight().new_zeros(base.matrix_shape))

    def delta_weight(self):
        return self.halved_delta

    def delta_forward(self, x):
        return nn.functional.linear(x, self.halved_delta / 2)


def test_the_example_of_the_kit_is_a_suite():
    (example,) = (block for block in blocks(KIT) if block.language == "python")
    namespace = {"__name__": "an_example"}
    exec(example.text, namespace)
    suite = namespace["TestC3A"]
    assert issubclass(suite, LayerMethodTests) and suite.cases()


def test_the_failure_on_the_page_is_what_the_kit_says():
    method = register_peft_method(
        name="halved", config_cls=HalvedConfig, adapter_cls=HalvedAdapter, prefix="halved_", replace=True
    )
    said = {"method": method.name, "configs": ({"bias": "none"}, {}), "kinds": ("linear",), "__module__": __name__}
    try:
        suite = type("Suite", (LayerMethodTests,), said)
        with pytest.raises(AssertionError) as failure:
            suite().test_merged_equals_forward(suite.cases()[0])
    finally:
        unregister_peft_method(method.name)
    (shown,) = (block for block in blocks(KIT) if block.language == "text")
    assert without_numbers(str(failure.value)) == without_numbers(shown.text)


def without_numbers(text):
    return " ".join(re.sub(r"\d[\d.e-]*", "N", text).split())


def test_the_page_s_table_names_what_a_suite_may_say():
    named = re.findall(r"(?m)^\| `(\w+)` \|", KIT)
    attributes = inspect.getmembers(LayerMethodTests, lambda value: not inspect.isroutine(value))
    assert named and set(named) <= {name for name, _ in attributes}
