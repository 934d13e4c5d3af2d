"""Lets all ranks abandon a step together when one of them cannot continue it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from cluster.collectives import Collectives, RankFailedError
from streaming.events.quoting import described

_log = logging.getLogger(__name__)

_OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, dist.DistError)
"""Errors that are not caused by the events: too little memory, a failed device or connection."""


class StepRefused(RuntimeError):
    """A step was not applied, and no rank's towers, rows or frequencies have changed. Raised on every rank or none.

    Attributes:
        reason: the same on every rank.
        losses: the loss terms, if the step had computed any.
    """

    def __init__(self, reason: str, losses: Mapping[str, float]) -> None:
        super().__init__(reason, losses)
        self.reason, self.losses = reason, losses

    def __str__(self) -> str:
        """The message for people."""
        return f"a training step was refused: {self.reason}"


def may_be_of_events(error: Exception, comm: Collectives) -> bool:
    """Whether the events of a step may have caused an error: not if memory, a device or another rank failed."""
    # The CPU's allocator raises a plain RuntimeError.
    out_of_memory = "can't allocate memory" in str(error)
    return not (comm.broken or out_of_memory or isinstance(error, _OF_THE_MACHINE))


@contextmanager
def together(comm: Collectives, decline: Callable[[], object]) -> Iterator[None]:
    """Collective. All ranks complete the block, or all of them raise `StepRefused`.

    An error is sent in the message that the other ranks wait for anyway, so it needs no additional message.

    Args:
        comm: the ranks.
        decline: takes part in the block's next message as a failed rank. The block must end with a message that can be
            declined, so that ranks that succeed learn of another's failure.
    Raises:
        StepRefused: some rank raised an error that its events may have caused.
    """
    failure = ""
    try:
        yield
        return
    except StepRefused:
        raise
    except RankFailedError:
        pass
    except Exception as error:
        if not may_be_of_events(error, comm):
            raise
        _log.debug("a step cannot be made", exc_info=True)
        failure = described(error)
        with suppress(RankFailedError):
            decline()
    raise StepRefused(first_failure(comm, failure), {})


def first_failure(comm: Collectives, failure: str) -> str:
    """Collective. The problem of the first rank that has one; "" if none has."""
    return next(filter(None, comm.gather_objects(failure)), "")
