"""What Ray's processes log to the terminal of a run, without messages that help no user."""

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
    # A stack where a busy machine answers late; it asks again by itself.
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client": logging.ERROR,
    # One line for each instruction set that it tries.
    "faiss": logging.WARNING,
    # What a rank has raised, with its traceback, which the rank has printed already; the run says that it starts again.
    "ray.train.v2._internal.execution.failure_handling.default": logging.WARNING,
    # That a worker which has crashed cannot be shut down gracefully, with a traceback.
    "ray.train.v2._internal.callbacks.backend_setup": logging.ERROR,
    # A connection that was lost, several times with a traceback: `streaming.kafka.outage` says that, in one line.
    "kafka": logging.CRITICAL,
}
_RAISED_BY_A_RANK = "ray.train.v2._internal.util"
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


def quiet_traceback() -> None:
    """Called by a rank that raises on purpose, or because it has lost the others: the reason is reported elsewhere."""
    logging.getLogger(_RAISED_BY_A_RANK).setLevel(logging.CRITICAL)


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


@contextmanager
def joining() -> Iterator[None]:
    """Around `ray.init` of a cluster that is there: it says where that is, not that SIGTERM is left to our driver."""
    logger = logging.getLogger("ray._private.worker")

    def keeps(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("SIGTERM handler is not set")

    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)
