"""One page for each plugin that has methods: its README, what it says of its methods, and every field of their configs.

A hook of mkdocs. The plugins have to be installed, as in the development environment.
"""

import dataclasses
import enum
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from peftcore.cli.description import MethodDescription, OptionDescription, describe, describe_options
from peftcore.config import PeftConfig
from peftcore.registry import registry

#: The section of the navigation, and its first page.
SECTION, OVERVIEW = "Methods", "methods.md"
_HEAD = ["field", "type", "default", "meaning", "whose"]
_BAR = re.compile(r"(?<!\\)\|")
_TABLE = re.compile(r"^\| field.*\n(?:\|.*\n)+\n?", re.MULTILINE)


def methods_by_plugin(root: Path) -> dict[Path, list[str]]:
    """Returns {folder of a plugin: its methods} for the plugins that have any, sorted."""
    methods = {status.distribution: sorted(status.methods) for status in registry.status() if status.methods}
    folders = sorted(path.parent for path in root.glob("plugins/*/pyproject.toml"))
    return {folder: methods[folder.name] for folder in folders if has_methods(folder, methods)}


def has_methods(folder: Path, methods: dict[str, list[str]]) -> bool:
    declared = "[project.entry-points.peftcore]" in (folder / "pyproject.toml").read_text(encoding="utf-8")
    if declared and folder.name not in methods:
        raise PluginError(f"{folder.name} is not installed. `python3 tools/dev.py test` installs every plugin.")
    return declared


def address(folder: Path) -> str:
    """Returns where in docs/ a plugin's page would stand."""
    return f"methods/{folder.name.removeprefix('peftcore-')}.md"


# ------------------------------------------------------------------------------------------------ one page


def page(folder: Path, methods: list[str]) -> str:
    """Returns a plugin's page: what it is in a table, its README, and the fields of its configs."""
    title, _, readme = (folder / "README.md").read_text(encoding="utf-8").partition("\n")
    text, said = without_table(readme)
    described = [describe(registry[name]) for name in methods]
    configs = {registry[name].config_cls.__name__: registry[name].config_cls for name in methods}
    # Tables get the room of the contents.
    front = f"---\nsource: plugins/{folder.name}/README.md\nhide: [toc]\n---\n"
    fields = [part for name, config in configs.items() for part in fields_of(name, config, said)]
    return "\n".join([front + title, "", facts(described), text.strip(), "", *fields])


def without_table(readme: str) -> tuple[str, dict[str, str]]:
    """Returns a README without its table of fields, and what that says of them, since the page has a longer one."""
    meanings: dict[str, str] = {}
    for rows in _TABLE.finditer(readme):
        for row in rows[0].strip().splitlines()[2:]:
            names, *_, meaning = (part.strip() for part in _BAR.split(row.strip().strip("|")))
            meanings.update(dict.fromkeys(re.findall(r"`(\w+)`", names), meaning))
    return _TABLE.sub("", readme), meanings


def facts(methods: list[MethodDescription]) -> str:
    """Returns a table with one column for each method."""
    rows = {
        "method": [f"`{method.name}`" for method in methods],
        "family": [f"[`{method.family}`](../architecture.md#adapters-and-families)" for method in methods],
        "layers": [", ".join(method.layers) or "none: virtual tokens in a model's calls" for method in methods],
        "merges": [method.mergeable for method in methods],
        "mixed batches": ["one pass" if method.mixed_batch == "1 pass" else "in groups" for method in methods],
        "paper": [paper(method.paper) for method in methods],
    }
    head, *rest = ([name, *cells] for name, cells in rows.items())
    return table(head, rest)


def paper(source: str | None) -> str:
    if source is None:
        return "–"
    is_arxiv = re.fullmatch(r"\d{4}\.\d{4,5}", source)
    return f"[arXiv {source}](https://arxiv.org/abs/{source})" if is_arxiv else f"<{source}>"


# ------------------------------------------------------------------------------------------ fields of a config


def fields_of(name: str, config: type[PeftConfig], said: dict[str, str]) -> list[str]:
    """Returns the sections on a config's fields: the method's own, and those that other methods have too.

    Args:
        name: The config's.
        config: The config.
        said: What the README says of some fields.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for option in describe_options(config):
        field = fields[option.name]
        meaning = sentence(said[option.name]) + bounds(field, option) if option.name in said else plain(option.meaning)
        rows[option.shared].append(
            [code(option.name), code(hint(field, option)), code(default(field, option)), meaning, origin(field)]
        )
    return [
        f"## Fields of {name}\n",
        table(_HEAD, rows[False]) if rows[False] else "It has none of its own.\n",
        f"## Fields of {name} that other methods have\n",
        table(_HEAD, rows[True]),
        "Where the last column says `peftcore`, HF PEFT has no such field; files hold it only where it is set.\n",
    ]


def bounds(field: dataclasses.Field[Any], option: OptionDescription) -> str:
    return option.meaning.removeprefix(field.metadata.get("meaning", ""))


def origin(field: dataclasses.Field[Any]) -> str:
    return "`peftcore`" if field.metadata.get("extension") else "HF&nbsp;PEFT"


def hint(field: dataclasses.Field[Any], option: OptionDescription) -> str:
    """Returns a type as it is written in a call; an enumeration as its values."""
    if isinstance(field.default, enum.Enum):
        return " or ".join(repr(member.value) for member in type(field.default))
    return option.type


def default(field: dataclasses.Field[Any], option: OptionDescription) -> str:
    """Returns a default as it can be written in a call; an enumeration's member by its value."""
    return repr(field.default.value) if isinstance(field.default, enum.Enum) else option.default


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def plain(text: str) -> str:
    """Returns a sentence in which nothing is taken for markup."""
    return re.sub(r"([\\*_{}\[\]<>|`])", r"\\\1", text)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


# ------------------------------------------------------------------------------------------- events of mkdocs


def root_of(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def on_config(config: MkDocsConfig) -> None:
    """Puts the pages into the navigation: methods that adapt layers first, then those that put virtual tokens in."""
    groups: dict[str, list[dict[str, str]]] = {"On layers": [], "Virtual tokens": []}
    for folder, methods in methods_by_plugin(root_of(config)).items():
        prompts = all(registry[name].encoder_cls is not None for name in methods)
        groups["Virtual tokens" if prompts else "On layers"].append({", ".join(methods): address(folder)})
    (section,) = (entry[SECTION] for entry in config.nav or () if SECTION in entry)
    section.extend({name: pages} for name, pages in groups.items())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for folder, methods in methods_by_plugin(root_of(config)).items():
        files.append(File.generated(config, address(folder), content=page(folder, methods)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Gives the overview's wide tables the room of its contents."""
    if page.file.src_uri == OVERVIEW:
        page.meta["hide"] = ["toc"]
