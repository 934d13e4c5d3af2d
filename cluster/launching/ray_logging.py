"""Removes messages of Ray's processes that do not help a user from a run's terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

SETUP_HOOK = f"{__name__}.quiet"
"""For `worker_process_setup_hook` of a runtime environment."""

_LEVELS = {
    # Five lines of metrics per checkpoint and rank. Ray names this logger by its file.
    str(Path(ray.__file__).parent / "train/v2/_internal/execution/context.py"): logging.WARNING,
    # A stack trace when a busy machine answers late; Ray retries.
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client": logging.ERROR,
    # One line for each instruction set that Faiss tries.
    "faiss": logging.WARNING,
    # A rank's exception with its traceback, which the rank has already printed; the run reports the restart.
    "ray.train.v2._internal.execution.failure_handling.default": logging.WARNING,
    # A traceback because a crashed worker cannot be shut down gracefully.
    "ray.train.v2._internal.callbacks.backend_setup": logging.ERROR,
    # Several tracebacks for a lost connection; `streaming.kafka.outage` logs one line.
    "kafka": logging.CRITICAL,
}
_RAISED_BY_A_RANK = "ray.train.v2._internal.util"
_OWN_INSTANCE_LEVELS = {
    # A warning that Ray does not handle SIGTERM; our driver does.
    "ray._private.worker": logging.ERROR,
    # A message about the token, which the run created.
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}


def quiet() -> None:
    """Called in each of Ray's worker processes, before anything runs there."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)


def quiet_traceback() -> None:
    """Called by a rank that raises on purpose or because it lost the others; the reason is reported elsewhere."""
    logging.getLogger(_RAISED_BY_A_RANK).setLevel(logging.CRITICAL)


@contextmanager
def starting_own_instance() -> Iterator[None]:
    """Suppresses warnings about our own choices during `ray.init` of an own instance."""
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
    """Suppresses the warning about SIGTERM during `ray.init` of a cluster, but not the cluster's address."""
    logger = logging.getLogger("ray._private.worker")

    def keeps(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("SIGTERM handler is not set")

    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)
