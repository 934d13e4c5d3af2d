"""The chaos campaign takes a group that died of itself for a bug, whatever was to strike it."""

import signal

import pytest

from tests.chaos.faults import Fault
from tests.chaos.verdict import DRIVER_LOST, FAILED, FINISHED, DiedOfItself, Ended, Raised, struck

KILLED, RAISED, SEGFAULT = signal.SIGKILL, 1 << 8, signal.SIGSEGV  # as wait says it
INSIDE = Fault("commit", "write", rank=1)
WORKER, ALL, DRIVER, BROKER = (
    Fault(target, rank=1, delay_s=1.0) for target in ("worker", "all", "driver", "broker")
)
FULL = Fault("enospc", "write", rank=1)
STRUCK_AT_S = 10.0
WANTS_A_PEER = Raised(0, STRUCK_AT_S + 0.1, "Connection closed by peer", of_a_peer=True)
NO_LAST = tuple(
    Raised(rank, 9.0, "the last checkpoint could not be written to here", of_a_peer=False) for rank in (0, 1)
)


def killed(rank=1, *raised, **more):
    return Ended(FAILED, (rank, KILLED), raised, **{"struck_at_s": STRUCK_AT_S, **more})


@pytest.mark.parametrize("fault", [INSIDE, WORKER, ALL, FULL], ids=lambda fault: fault.target)
def test_a_group_whose_rank_was_killed_and_took_the_other_with_it_was_struck(fault):
    assert struck(fault, killed(1, WANTS_A_PEER))


def test_of_all_that_are_killed_any_may_be_the_first():
    assert struck(ALL, killed(0))


def test_a_group_that_lost_its_driver_on_purpose_was_struck():
    assert struck(DRIVER, Ended(DRIVER_LOST, struck_at_s=STRUCK_AT_S))


def test_a_broker_that_came_back_has_struck_a_group_that_finished():
    assert struck(BROKER, Ended(FINISHED, struck_at_s=STRUCK_AT_S))
    assert not struck(BROKER, Ended(FINISHED))


@pytest.mark.parametrize("fault", [None, INSIDE, WORKER, ALL, DRIVER, FULL])
def test_a_group_that_finished_before_its_fault_was_not_struck(fault):
    assert not struck(fault, Ended(FINISHED, struck_at_s=STRUCK_AT_S))


def test_with_a_full_disk_a_run_may_fail_for_want_of_its_last_checkpoint_and_of_no_other_reason():
    assert struck(FULL, Ended(FAILED, (0, RAISED), NO_LAST, disk_full=True))
    for ended in (
        Ended(FAILED, (0, RAISED), NO_LAST),
        Ended(FAILED, (0, RAISED), (NO_LAST[0], WANTS_A_PEER), disk_full=True),
        Ended(FAILED, (0, RAISED), disk_full=True),
    ):
        with pytest.raises(DiedOfItself, match="not struck yet"):
            struck(FULL, ended)
    with pytest.raises(DiedOfItself):
        struck(INSIDE, Ended(FAILED, (0, RAISED), NO_LAST, disk_full=True))


BUGS = {
    "with nothing to strike it": (None, Ended(FAILED, (1, KILLED)), "nobody was killed"),
    "of a broker that came back": (BROKER, killed(), "nobody was killed"),
    "by an exception before the fault inside": (INSIDE, Ended(FAILED, (0, RAISED)), "not struck yet"),
    "by an exception before anything could be killed": (WORKER, Ended(FAILED, (0, RAISED)), "not struck yet"),
    "by an exception, and the others were killed for it": (
        INSIDE,
        killed(1, Raised(0, STRUCK_AT_S - 0.1, "KeyError", of_a_peer=True)),
        "failed before the fault",
    ),
    "of two things": (WORKER, killed(1, Raised(0, 10.1, "KeyError", of_a_peer=False)), "not for want of"),
    "by a fault of memory": (ALL, Ended(FAILED, (0, SEGFAULT), struck_at_s=10.0), "nobody had killed it"),
    "with a status first, as the fault struck another": (
        INSIDE,
        Ended(FAILED, (0, RAISED), struck_at_s=10.0),
        "nobody had killed it",
    ),
    "by a kill of another rank": (INSIDE, killed(0), "instead of rank 1"),
    "by a kill of another rank than the one with the full disk": (FULL, killed(0), "instead of rank 1"),
    "with its driver, under a fault of a worker": (
        WORKER,
        Ended(DRIVER_LOST, struck_at_s=10.0),
        "driver was lost",
    ),
    "while its driver was to be killed": (DRIVER, killed(), "the driver was killed and says"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_group_that_dies_otherwise_has_found_a_bug(name):
    fault, ended, words = BUGS[name]
    with pytest.raises(DiedOfItself, match=words):
        struck(fault, ended)
