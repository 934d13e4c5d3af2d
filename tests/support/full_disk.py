"""Full disks for tests: by a limit that the kernel enforces, or per call."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of this process's files: any write beyond it fails (Python ignores SIGXFSZ)."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@contextmanager
def refusing(call: str, code: int = FULL, below: object = "/") -> Iterator[list[str]]:
    """Make a call of `os` fail for paths with a prefix (`open`: to create a file, `fsync`: all); yields these paths."""
    real, refused = getattr(os, call), []

    def act(path, *args, **kwargs):
        reads_only = call == "open" and not args[0] & os.O_CREAT
        if isinstance(path, int) or (str(path).startswith(str(below)) and not reads_only):
            refused.append(str(path))
            # As in the system, a descriptor's path is not in the error.
            raise OSError(code, os.strerror(code), *([] if isinstance(path, int) else [str(path)]))
        return real(path, *args, **kwargs)

    with mock.patch.object(os, call, act):
        yield refused
