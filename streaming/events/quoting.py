"""Shortens untrusted values to texts for error messages and headers; never raises for any value."""

import reprlib

_LONGEST = 120


class _Short(reprlib.Repr):
    """`repr` with limited depth and length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = _LONGEST


_short = _Short()


def quoted(value: object) -> str:
    """The value's `repr`, cut to about 120 characters; only its type if `repr` fails."""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return f"{bytes(value[:_LONGEST])!r}{'…' if len(value) > _LONGEST else ''}"
        text = _short.repr(value)
    except Exception:
        # Integers of thousands of digits, deep nesting, a custom __repr__: only the type is shown.
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def described(error: BaseException) -> str:
    """An error as one short line: its type and the beginning of its message."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    text = text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def header_value(text: str, longest: int) -> bytes:
    """A text as UTF-8 of limited length, cut between characters; characters that UTF-8 cannot hold are escaped."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= longest:
        return data
    return data[:longest].decode("utf-8", "ignore").encode()
