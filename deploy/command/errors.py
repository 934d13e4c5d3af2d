"""How a failure is reported: one line on stderr, an exit status, a traceback only for bugs."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from deploy.command.terminal import printable, say, say_lines

USAGE_STATUS = 2
FAILURE_STATUS = 1
DEBUG_VARIABLE = "FRESHET_DEBUG"

# Parts of the message of Ray's OutOfMemoryError, which fills a page.
MEMORY_OF_NODE = re.compile(
    r"IP: (?P<node>[^,)\s]+).*?was (?P<used>[\d.]+\s?[A-Z]+) used / (?P<limit>[\d.]+\s?[A-Z]+) limit",
    re.DOTALL,
)
OUR_PACKAGES = frozenset({"streaming", "model", "retrieval", "cluster", "deploy"})
# Where Ray keeps the exception raised by the user's code, by exception class and attribute.
# Given as text, so that reporting an error does not import Ray.
RAY_CAUSES = ("cause", "_base_exc", "controller_failure")


class CommandError(Exception):
    """A verb could not do its work; the message is complete (what happened, the value, the setting)."""


class UsageError(CommandError):
    """The command line or the settings are wrong: exit status 2."""


def unwrap(error: BaseException) -> BaseException:
    """The original exception inside Ray's.

    If several workers failed, the first failure that is not merely a lost worker: when one rank raises, the others
    often only report that their collective broke.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = _cause_inside(error)
        if inner is None:
            return error
        error = inner
    return error


def _cause_inside(error: BaseException) -> BaseException | None:
    if not type(error).__module__.startswith("ray."):
        return None
    failures = getattr(error, "worker_failures", None)
    if failures:
        causes = [unwrap(failure) for _, failure in sorted(failures.items())]
        return next((cause for cause in causes if is_ours(cause)), causes[0])
    for name in RAY_CAUSES:
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return None


def is_ours(error: BaseException) -> bool:
    """Whether the error was raised on purpose, so that its message is enough and a traceback would hide it.

    True for exception classes of our packages, for a ValueError or OSError raised by our own code (not by a library),
    and for errors that Ray raises on purpose.
    """
    if _package(type(error).__module__) in OUR_PACKAGES or _out_of_memory(error):
        return True
    if not isinstance(error, ValueError | OSError):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    # An error from another process has lost its frames; trust its message.
    return not frames or _package(frames[-1][0].f_globals.get("__name__", "")) in OUR_PACKAGES


def _package(module: str) -> str:
    return module.partition(".")[0]


def is_usage(error: BaseException) -> bool:
    """Whether the settings or the command line are wrong (exit status 2) rather than the environment (1)."""
    return isinstance(error, UsageError) or type(error).__name__ == "ConfigError"


def one_line(error: BaseException) -> str:
    """The message on one line; an exception without one gives its class name."""
    text = _out_of_memory(error) or " ".join(printable(error).split())
    return text or type(error).__name__


def _out_of_memory(error: BaseException) -> str:
    """An explanation of Ray's OutOfMemoryError and what to change; empty for any other error."""
    if type(error).__name__ != "OutOfMemoryError" or _package(type(error).__module__) != "ray":
        return ""
    found = MEMORY_OF_NODE.search(str(error))
    where = f" ({found['node']}: {found['used']} of {found['limit']} in use)" if found else ""
    return (
        f"a node ran out of memory{where}, so Ray killed a worker there: lower train.workers, table.max_rows or "
        "stream.buffered_bytes_per_partition, give the nodes more memory, or let more of it be used "
        "(RAY_memory_usage_threshold, by default 0.95 of it)"
    )


def report(error: BaseException) -> int:
    """Report the error on stderr and return the exit status.

    With FRESHET_DEBUG=1, or for an unexpected error, its traceback comes first.
    """
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    cause = unwrap(error)
    expected = is_ours(cause)
    if debug or not expected:
        say_lines("".join(traceback.format_exception(error)), to_stderr=True)
    label = "" if expected else f"{type(cause).__name__}: "
    say(f"freshet: error: {label}{one_line(cause)}", to_stderr=True)
    return USAGE_STATUS if is_usage(cause) else FAILURE_STATUS


def last_line_of(log_path: Path) -> str:
    """The last non-empty line of a subprocess's log, for the one line that names the log.

    Our own error line is preferred over later output of surrounding processes.
    """
    try:
        text = log_path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log was written"
    lines = [line for line in (printable(raw).strip() for raw in text.splitlines()) if line]
    ours = [line for line in lines if line.startswith("freshet: error: ")]
    if ours:
        return ours[-1].removeprefix("freshet: error: ")
    return lines[-1][-300:] if lines else "the log is empty"
