"""The pages on contributing and on changes: files at the root of the repository, which are brought in.

A hook of mkdocs. Changes that are not released yet stand on top of the changelog.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

#: The kinds of fragments, as changelog.d/README.md has them, and their headings.
KINDS = {"breaking": "Breaking", "deprecation": "Deprecated", "change": "Changed", "fix": "Fixed"}


def brought_in(root: Path, name: str, *others: str) -> str:
    """Returns the text of a file; links to it, and to others, are going to lead to its page."""
    return f"---\nsource: {' '.join([name, *others])}\n---\n" + (root / name).read_text(encoding="utf-8")


def changelog(root: Path) -> str:
    """Returns CHANGELOG.md with the fragments, each of them an item, in front of the first version."""
    introduction, heading, versions = brought_in(root, "CHANGELOG.md", "changelog.d").partition("\n## ")
    return introduction.rstrip() + "\n\n" + unreleased(root) + heading + versions


def unreleased(root: Path) -> str:
    parts = []
    for kind, title in KINDS.items():
        fragments = sorted(root.glob(f"changelog.d/*.{kind}.md"))
        if fragments:
            parts += [f"### {title}\n", *(item(path.read_text(encoding="utf-8")) for path in fragments)]
    return "\n".join(["## Not released yet\n", *parts]) if parts else ""


def item(text: str) -> str:
    """Returns a fragment as an item of a list; what follows its first line is indented."""
    return "- " + text.strip().replace("\n", "\n    ") + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    root = Path(config.config_file_path).parent
    files.append(File.generated(config, "contributing.md", content=brought_in(root, "CONTRIBUTING.md")))
    files.append(File.generated(config, "changelog.md", content=changelog(root)))
    return files
