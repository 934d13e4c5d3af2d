"""What Ray's processes say on the terminal of a run, less what helps nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

SETUP_HOOK = f"{__name__}.quiet"
"""For `worker_process_setup_hook` of a runtime environment."""

_LEVELS = {
    # Five lines of the metrics of each checkpoint, for each rank. Ray names this logger by its file.
    str(Path(ray.__file__).parent / "train/v2/_internal/execution/context.py"): logging.WARNING,
    # One line for each instruction set that it tries.
    "faiss": logging.WARNING,
}
_OWN_INSTANCE_LEVELS = {
    # That SIGTERM is not handled by Ray: our driver handles it.
    "ray._private.worker": logging.ERROR,
    # That there is a token: it is one that the run made for itself.
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}


def quiet() -> None:
    """Called in each of Ray's worker processes, before anything runs there."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def starting_own_instance() -> Iterator[None]:
    """Around `ray.init` of an instance of our own: without warnings of what we chose."""
    before = {name: logging.getLogger(name).level for name in _OWN_INSTANCE_LEVELS}
    for name, level in _OWN_INSTANCE_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
