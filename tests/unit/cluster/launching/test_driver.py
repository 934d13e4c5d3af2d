"""How the driver ends a run, with a simulated Ray."""

import threading
import time

import pytest

from cluster.launching import driver as driver_module
from cluster.launching.driver import Driver, HeadLost, StopTimedOut
from cluster.stop_request import StopRequest


class PretendedRay:
    own = True
    missing = ""
    killed = closed = False

    def close(self):
        self.closed = True

    def kill(self):
        self.killed = True


class PretendedHead:
    answers = 0

    def __init__(self, run_id, stop):
        pass

    def close(self):
        pass


@pytest.fixture
def ends(monkeypatch):
    """Exit statuses with which the process was to end without its threads."""
    statuses = []
    monkeypatch.setattr(driver_module.atexit, "register", lambda end, status: statuses.append(status))  # type: ignore[attr-defined]
    monkeypatch.setattr(driver_module, "HeadLine", PretendedHead)
    return statuses


def driver_of(ray, stop, within_s=30.0, can_finish=True, stopped=lambda: False):
    return Driver(
        "run",
        lambda: ray,
        stop,
        stop_within_s=within_s,
        can_finish=lambda: can_finish,
        stopped=stopped,
    )


def test_work_that_ends_by_itself_leaves_ray_in_order(ends):
    ray = PretendedRay()
    assert driver_of(ray, StopRequest()).run(lambda: None)
    assert (ray.closed, ray.killed, ends) == (True, False, [])


def test_what_the_work_raises_is_raised_on_the_main_thread_and_ray_is_left(ends):
    ray = PretendedRay()

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        driver_of(ray, StopRequest()).run(fail)
    assert ray.closed


def test_a_stop_is_left_to_the_workers_as_long_as_there_is_time(ends):
    ray, stop = PretendedRay(), StopRequest()

    def train():
        stop.ask()
        time.sleep(0.5)

    assert driver_of(ray, stop).run(train)
    assert (ray.closed, ray.killed) == (True, False)


def test_a_stop_before_anything_is_trained_kills_ray_at_once_with_the_status_of_the_request(ends):
    ray, stop = PretendedRay(), StopRequest()
    stop.ask(143)
    started = time.monotonic()
    assert not driver_of(ray, stop, can_finish=False).run(lambda: threading.Event().wait(60))
    assert time.monotonic() - started < 5
    assert (ray.killed, ends) == (True, [143])


def test_workers_that_have_stopped_need_not_wait_for_ray(ends):
    ray, stop = PretendedRay(), StopRequest()
    stop.ask()
    assert not driver_of(ray, stop, stopped=lambda: True).run(lambda: threading.Event().wait(60))
    assert (ray.killed, ends) == (True, [0])


def test_a_last_checkpoint_that_does_not_come_in_time_is_a_failure(ends):
    ray, stop = PretendedRay(), StopRequest()
    stop.ask()
    with pytest.raises(StopTimedOut, match=r"within 2 s \(setting: train\.stop_within_s\)"):
        driver_of(ray, stop, within_s=2.0).run(lambda: threading.Event().wait(60))
    assert (ray.killed, ends) == (True, [1])


@pytest.mark.parametrize(("missing", "what"), [("gcs_server", "gcs_server"), ("", "no answer for 1 s")])
def test_a_head_that_is_gone_ends_the_run_with_one_line(ends, monkeypatch, missing, what):
    ray = PretendedRay()
    ray.missing = missing
    monkeypatch.setattr(driver_module, "_HEAD_PATIENCE_S", 0.6)
    with pytest.raises(HeadLost, match=f"Ray's head on this machine is gone .*{what}"):
        driver_of(ray, StopRequest()).run(lambda: threading.Event().wait(60))
    assert (ray.killed, ends) == (True, [1])
