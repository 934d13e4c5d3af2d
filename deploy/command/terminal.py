"""All output to a terminal goes through here and is treated as text, whatever the data contain.

`printable` removes everything that a terminal would interpret. A `Terminal` applies it to all its strings and reads no
markup, and `guard_streams` applies it to everything that libraries write to stdout and stderr. The linter (TID251 and
T201) refuses other ways to a terminal, so no data can bypass this module by oversight.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

# Colours, cursor movements and the like are removed; the letters of other sequences stay visible.
_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
# They change the display order of a line: U+061C, marks, embeddings, overrides, isolates.
_BIDIRECTIONAL = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_BREAKS = [*map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"), 0x2028, 0x2029]
_SURROGATES = range(0xD800, 0xE000)
_REMOVED: dict[int, str] = {
    **dict.fromkeys(_CONTROLS + _BIDIRECTIONAL, ""),
    **dict.fromkeys(_SURROGATES, "\ufffd"),  # no encoding has them
}
_ONE_LINE = _REMOVED | dict.fromkeys(_BREAKS, " ")
_MANY_LINES = _ONE_LINE | {ord("\n"): "\n"}


def printable(value: object) -> str:
    """The value as text of one line: no control characters, no terminal sequences, no reordering; breaks are blanks.

    Removed are C0, DEL and C1, the bidirectional controls of Unicode, and control sequences (`ESC [ …`) as a whole.
    """
    return _clean(str(value), _ONE_LINE)


def _clean(text: str, table: dict[int, str]) -> str:
    return _SEQUENCE.sub("", text).translate(table)


class Terminal(Console):
    """A rich console that treats every string as data: `printable`, without markup, emoji codes or highlighting.

    Styles come as arguments (`style=`) or as renderables; lines of one cell come from `stacked`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    @property
    def file(self) -> Any:
        """The stream that it writes to, not guarded, because its own sequences are not data."""
        file = super().file
        return file.unguarded if isinstance(file, _TextOnly) else file

    @file.setter
    def file(self, new_file: Any) -> None:
        self._file = new_file

    def render_str(self, text: str, *, style: str | Style = "", **options: Any) -> Text:
        """A string as rich renders it, anywhere: one line of text."""
        plain = {name: options[name] for name in ("justify", "overflow") if options.get(name) is not None}
        return Text(printable(text), style=style, **plain)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of a renderable, cleaned, including those from rich's own text objects."""
        for segment in super().render(renderable, options):
            style = segment.style
            if segment.control:
                yield segment
            elif style is not None and style.link:  # for sequences in other output
                yield Segment(_clean(segment.text, _MANY_LINES), style.update_link(None))
            elif segment.text.isprintable():
                yield segment
            else:
                yield Segment(_clean(segment.text, _MANY_LINES), style)


def line(*parts: str | tuple[str, str], style: str = "") -> Text:
    """One line of differently styled parts: texts, or (text, style)."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((printable(text), of_part) for text, of_part in pairs), style=style)


def stacked(lines: Iterable[str], style: str = "", *, ellipsis: bool = False) -> Text:
    """Several lines in one cell.

    Args:
        lines: each becomes one.
        style: of all.
        ellipsis: a line that is too long is cut, not wrapped.
    """
    cut: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"} if ellipsis else {}
    return Text("\n".join(map(printable, lines)), style=style, **cut)


def panel(body: RenderableType, title: str, subtitle: str = "") -> Panel:
    """A frame with a title on its left, and with a subtitle below it."""
    below = line(subtitle) if subtitle else None
    return Panel(body, title=line(title), title_align="left", subtitle=below, subtitle_align="left")


def say(sentence: object, *, to_stderr: bool = False) -> None:
    """Print one line, unwrapped and unstyled."""
    print(printable(sentence), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def say_lines(text: str, *, to_stderr: bool = False) -> None:
    """Print lines from another source unchanged: a job's log, a traceback."""
    print(_clean(text, _MANY_LINES), end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)


class _TextOnly:
    """A text stream that removes control sequences; everything else is the wrapped stream's."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        self.unguarded.write(_clean(text, _MANY_LINES))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guard_streams(arguments: Sequence[str]) -> Iterator[None]:
    """While the block runs, stdout and stderr are text only, also for Ray's worker logs, logging and warnings.

    Args:
        arguments: of the command line. Help texts, which hold no data, keep their colours.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        yield
        return
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # do not fail if a terminal cannot show a character
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _TextOnly(before[0]), _TextOnly(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
