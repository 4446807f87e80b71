"""Links that lead out of docs/, such as ``../plugins/peftcore-lora``, work in the repository and on the site.

A hook of mkdocs, and the last one that adds pages.
On the site such a link leads to the page that shows the file: the one that was made of it, or a new page with the
file's text. A folder is shown by its README's page or by a list of its files.
A page says by ``source`` in its front matter which files it was made of; its links are relative to the first of them.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: A link to a file, or a block of code, in which nothing is a link.
_LINK = re.compile(
    r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)\s*$"
    r"|\]\((?![a-z]+:|#|<|/)(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)
_SOURCE = re.compile(r"\A---\nsource: (.+)\n")
#: Where mkdocs' configuration keeps what on_files has found.
_SHOWN = "pages_of_files"
_LEXERS = {".py": "python", ".toml": "toml", ".yml": "yaml", ".txt": "text", ".json": "json", "": "text"}


def sources(file: File) -> list[str]:
    """Returns the paths in the repository of what a page shows."""
    source = _SOURCE.match(file.content_string)
    return source[1].split() if source else [f"docs/{file.src_uri}"]


def outward(source: str, target: str) -> str | None:
    """Returns the path in the repository that a link leads to, or None where it stays in docs/."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    stays = path.startswith("..") or (source.startswith("docs/") and path.startswith("docs/"))
    return None if stays else path


def links(source: str, markdown: str) -> list[str]:
    """Returns the paths in the repository that a file's links out of docs/ lead to."""
    targets = (link["target"] for link in _LINK.finditer(markdown) if link["target"])
    return [path for target in targets if (path := outward(source, target)) is not None]


def turned(markdown: str, source: str, page: str, shown: dict[str, str]) -> str:
    """Returns a page's text with the links out of docs/ turned towards the pages that show what they lead to.

    Args:
        markdown: The text.
        source: The path in the repository that its links are relative to.
        page: The page's path in docs/.
        shown: The pages' paths in docs/ by the paths in the repository of what they show.
    """

    def turn(link: re.Match[str]) -> str:
        path = outward(source, link["target"]) if link["target"] else None
        found = None if path is None else find(path, shown)
        return link[0] if found is None else f"]({relative(found, page)}{link['anchor'] or ''})"

    return _LINK.sub(turn, markdown)


def relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def find(path: str, shown: dict[str, str]) -> str | None:
    return shown.get(path) or shown.get(f"{path}/README.md") or ("index.md" if path == "README.md" else None)


def text_of(root: Path, path: str) -> str | None:
    """Returns a page that shows a file or a folder, or None where there is neither."""
    place = root / path
    if place.is_dir():
        entries = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith((".", "_")))
        listed = "".join(f"- [{name}]({posixpath.basename(path)}/{name})\n" for name in entries)
        return f"---\nsource: {path}\n---\n# {path}\n\n{listed}"
    if not place.is_file():
        return None
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return f"---\nsource: {path}\n---\n{text}"
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=2))
    return f"---\nsource: {path}\n---\n# {path}\n\n{fence}{_LEXERS.get(place.suffix, 'text')}\n{text}{fence}\n"


# ------------------------------------------------------------------------------------------- events of mkdocs


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages for the files and folders that pages link to and that have none yet."""
    root = Path(config.config_file_path).parent
    pages = list(files.documentation_pages())
    shown = {source: page.src_uri for page in pages for source in sources(page)}
    for page in pages:  # which grows: the new ones have links too
        for path in links(sources(page)[0], page.content_string):
            text = text_of(root, path) if find(path, shown) is None else None
            if text is not None:
                shown[path] = f"files/{path.removesuffix('.md')}.md"
                pages.append(File.generated(config, shown[path], content=text))
                files.append(pages[-1])
    config.extra[_SHOWN] = shown
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page."""
    source = sources(page.file)[0]
    return turned(markdown, source, page.file.src_uri, config.extra[_SHOWN])
