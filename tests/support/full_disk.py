"""Disks that take nothing more, as a test wants them: by a limit that the kernel holds, or call by call."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond it: writes fail, whoever makes them (Python ignores SIGXFSZ)."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@contextmanager
def refusing(call: str, code: int = FULL, below: object = "/") -> Iterator[list[str]]:
    """A call of `os` fails for paths that start so (`open`: to make a file, `fsync`: all); those that it failed for."""
    real, refused = getattr(os, call), []

    def act(path, *args, **kwargs):
        reads_only = call == "open" and not args[0] & os.O_CREAT
        if isinstance(path, int) or (str(path).startswith(str(below)) and not reads_only):
            refused.append(str(path))
            # As the system does: a descriptor's path is not in the error.
            raise OSError(code, os.strerror(code), *([] if isinstance(path, int) else [str(path)]))
        return real(path, *args, **kwargs)

    with mock.patch.object(os, call, act):
        yield refused
