"""Parses the documents of the repository for tests: links, anchors, commands, and words."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_PAGE_NOT_RUN = re.compile(r"<!-- not run on this page: (.+?) -->", re.DOTALL)
_CONSOLE = re.compile(
    r"(?:^<!-- not run: ((?:(?!-->).)+?) -->\n)?^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_SHELL_COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Command:
    """A command line of a document.

    Attributes:
        page: path of the document, relative to the repository.
        text: the command, without its prompt, its comment, and a trailing `&`.
        background: whether it ended in `&`.
        reason: why no test runs it; empty if one does.
    """

    page: str
    text: str
    background: bool
    reason: str

    @property
    def words(self) -> list[str]:
        """The words that a shell makes of it."""
        return shlex.split(self.text)


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def guides() -> list[Path]:
    """The README and everything under docs/."""
    return [page for page in pages() if page == ROOT / "README.md" or ROOT / "docs" in page.parents]


def prose(page: Path) -> str:
    """The text of a page without fenced blocks and comments."""
    return _COMMENT.sub("", "\n".join(line for fenced, line in _lines(page) if not fenced))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeat = sum(1 for other in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", other))
        found.add(f"{slug}-{repeat}" if repeat else slug)
    return found


def links(page: Path) -> list[str]:
    """The targets of the page's links and images."""
    return _LINK.findall(prose(page))


def code_spans(page: Path) -> list[str]:
    """Inline code of the page."""
    return _CODE_SPAN.findall(prose(page))


def commands(page: Path) -> list[Command]:
    """The commands of the page's console blocks, in order."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    of_page = _PAGE_NOT_RUN.search(text)
    found: list[Command] = []
    for reason, block in _CONSOLE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                bare = _SHELL_COMMENT.sub("", line.removeprefix("$ ")).strip()
                why = reason or (of_page[1] if of_page else "")
                found.append(Command(name, bare.removesuffix("&").strip(), bare.endswith("&"), why))
    return found


def python_blocks(page: Path) -> list[str]:
    """The page's Python blocks, in order."""
    return _PYTHON.findall(page.read_text())


def _lines(page: Path) -> Iterator[tuple[bool, str]]:
    """Each line, and whether it is inside a fenced block; the fences themselves are not."""
    inside = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
            yield False, line
        else:
            yield inside, line
