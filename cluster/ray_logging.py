"""What the processes of a Ray instance of our own say, less what helps nobody."""

from __future__ import annotations

import logging

SETUP_HOOK = f"{__name__}.quiet"
"""For `worker_process_setup_hook` of a runtime environment."""

_LEVELS = {
    # Each second it asks a dashboard, which this instance has not, whether the controller lives. What it guards
    # against, resources that outlive their driver, cannot happen where the instance ends with it.
    "ray.train.v2._internal.execution.controller.placement_group_cleaner": logging.ERROR,
    # One line for each instruction set that it tries.
    "faiss": logging.WARNING,
}


def quiet() -> None:
    """Called by Ray in each of its worker processes, before anything runs there."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
