"""No page of the site fetches anything from another host: no font, no script, no drawing.

A hook of mkdocs. What a page would fetch is a warning, and with ``--strict`` the build fails.
"""

import logging
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.own_host")

_TAG = re.compile(r"<(?:script|img|link|iframe|source|video|audio|object|embed|input|use)\b[^>]*>", re.IGNORECASE)
_ADDRESS = re.compile(r"""\b(?:src|href|srcset|data|poster)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", re.IGNORECASE)


def fetched(html: str) -> list[str]:
    """Returns the addresses on other hosts that a browser would fetch from to show a page."""
    found = [address for tag in _TAG.findall(html) if (address := _ADDRESS.search(tag))]
    drawings = ["the script that draws mermaid's drawings"] * ('class="mermaid"' in html)
    return [address[1] for address in found] + drawings


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Warns of each address."""
    for address in fetched(output):
        log.warning("%s would fetch %s", page.file.src_uri, address)
