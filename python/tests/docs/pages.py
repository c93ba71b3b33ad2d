"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

_SNIPPET = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")


class Snippet(NamedTuple):
    """A block of code.

    Attributes:
        page: The file.
        line: That of its first line of code.
        language: As the page says, or "".
        text: The code.
    """

    page: Path
    line: int
    language: str
    text: str


def snippets(page: Path, *languages: str) -> Iterator[Snippet]:
    """Yield a page's blocks of some languages, or all."""
    text = page.read_text(encoding="utf-8")
    for found in _SNIPPET.finditer(text):
        if not languages or found[1] in languages:
            line = text.count("\n", 0, found.start(2)) + 1
            yield Snippet(page, line, found[1], found[2])


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _SNIPPET.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """Return what stands between backticks in a page's sentences."""
    return _SPAN.findall(prose(page))
