"""Values from outside as short texts for error messages and headers; never raises, whatever the value is."""

import reprlib

_LONGEST = 120


class _Short(reprlib.Repr):
    """`repr` that goes neither deep nor far."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = _LONGEST


_short = _Short()


def quoted(value: object) -> str:
    """The value as `repr` shows it, cut to about 120 characters; its type alone where `repr` fails."""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return f"{bytes(value[:_LONGEST])!r}{'…' if len(value) > _LONGEST else ''}"
        text = _short.repr(value)
    except Exception:
        # Integers of thousands of digits, nesting, a __repr__ of its own: the type must do.
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def described(error: BaseException) -> str:
    """An error as one short line: its type and the beginning of what it says."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    text = text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def header_value(text: str, longest: int) -> bytes:
    """A text as UTF-8 of at most so many bytes, cut between characters; what UTF-8 cannot hold is escaped."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= longest:
        return data
    return data[:longest].decode("utf-8", "ignore").encode()
