"""Hooks of `mkdocs build` (mkdocs.yml): figures in the navigation, links that leave docs/.

Pages link to files of the repository (`../docker/Dockerfile`), which the site does not have. There
such a link is the file's path, as code; a file that does not exist is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Every page of docs/figures in the navigation, by name."""
    figures = [path.name for path in sorted((ROOT / "docs" / "figures").glob("*.md"))]
    for entry in config.nav:
        if "Figures" in entry:
            entry["Figures"] = [f"figures/{name}" for name in figures]
    return config


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """A page with the links that leave docs/ as text."""
    return inside(markdown, page.file.src_uri)


def inside(markdown: str, source: str) -> str:
    """A page's text, where `source` is its path within docs/; code blocks are left as they are."""
    parts = _FENCE.split(markdown)
    shown = [part if part.startswith("```") else _unlinked(part, source) for part in parts]
    return "".join(shown)


def _unlinked(text: str, source: str) -> str:
    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link["target"]))
        if not link["target"] or "://" in link["target"] or path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{source} links to {path}, which does not exist")
        return f"{link['text']} (`{path}`)"

    return _LINK.sub(replace, text)
