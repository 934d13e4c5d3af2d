import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pyarrow as pa
import pytest

from deploy.datasets.choosing import first_events, recent_users
from deploy.demo.replay_thread import ReplayThread


@dataclass(frozen=True)
class FakeDataset:
    interactions: pa.Table
    items: pa.Table | None = None
    users: pa.Table | None = None


def dataset(users: list[int], times: list[int]) -> FakeDataset:
    return FakeDataset(pa.table({"user_id": users, "item_id": users, "timestamp_ms": times}))


def test_the_first_events_are_the_oldest_and_keep_their_order():
    data = dataset([1, 2, 3, 4], [40, 10, 30, 20])
    assert first_events(data, 2).interactions["user_id"].to_pylist() == [2, 4]
    assert first_events(data, 0) is data
    assert first_events(data, 9) is data


def test_recent_users_are_those_of_the_newest_events_with_enough_history():
    data = dataset([7, 7, 8, 9, 9], [1, 2, 3, 4, 5])
    assert recent_users(data, 2, at_least=2) == [9, 7]
    assert recent_users(data, 5, at_least=1) == [9, 8, 7]
    # If nobody has so much history, the newest will do.
    assert recent_users(data, 1, at_least=100) == [9]


def test_the_replay_beside_other_work_tells_how_far_it_is(monkeypatch):
    go_on = threading.Event()

    def replay(stream, data, *, duration_s, seed, progress, stop):
        progress(3)
        go_on.wait(10)
        return SimpleNamespace(events=5)

    monkeypatch.setattr("streaming.producing.replay.replay", replay)
    with ReplayThread(None, dataset([1], [1]), 1.0, 0) as thread:
        _wait_until(lambda: thread.produced == 3)
        assert not thread.finished
        go_on.set()
        thread.release()
        _wait_until(lambda: thread.finished)
        thread.check()
    assert thread.produced == 5


def test_a_failed_replay_raises_where_it_is_checked(monkeypatch):
    def replay(*arguments, **options):
        raise RuntimeError("no broker answers")

    monkeypatch.setattr("streaming.producing.replay.replay", replay)
    with ReplayThread(None, dataset([1], [1]), 1.0, 0) as thread:
        thread._thread.join(10)
        with pytest.raises(RuntimeError, match="no broker answers"):
            thread.check()
    assert not thread.finished


def test_leaving_stops_the_replay(monkeypatch):
    def replay(stream, data, *, duration_s, seed, progress, stop):
        stop.wait(60)
        return SimpleNamespace(events=1)

    monkeypatch.setattr("streaming.producing.replay.replay", replay)
    started = time.monotonic()
    with ReplayThread(None, dataset([1], [1]), 1.0, 0):
        pass
    assert time.monotonic() - started < 5


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
