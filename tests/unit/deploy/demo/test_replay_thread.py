"""The demo's stream begins with a few events, for the first step; the rest waits until training has begun."""

import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from deploy.datasets.datasets import Dataset
from deploy.demo.replay_thread import FIRST_EVENTS, ReplayThread

EVENTS = 3 * FIRST_EVENTS


@pytest.fixture
def sent(monkeypatch):
    """(number of events, seconds) of each replay; `first` is set once the first one has ended."""
    sent = SimpleNamespace(parts=[], times=[], first=threading.Event())

    def replay(stream, dataset, *, duration_s, seed, progress, stop):
        sent.parts.append((dataset.interactions.num_rows, duration_s))
        sent.times += dataset.interactions["timestamp_ms"].to_pylist()
        progress(1)
        sent.first.set()
        return SimpleNamespace(events=dataset.interactions.num_rows)

    monkeypatch.setattr("streaming.producing.replay.replay", replay)
    return sent


def _dataset(events):
    times = list(range(events))[::-1]
    table = pa.table({"user_id": times, "item_id": times, "timestamp_ms": times})
    return Dataset("a set", table, pa.table({}), pa.table({}), {})


def test_the_rest_of_the_stream_waits_for_training_and_takes_all_the_time(sent):
    with ReplayThread(None, _dataset(EVENTS), 60.0, 1) as replay:
        assert sent.first.wait(60)
        assert sent.parts == [(FIRST_EVENTS, 0.0)]
        assert not replay.finished
        replay.release()
        replay._thread.join(60)
        assert replay.finished
        assert replay.produced == EVENTS
    assert sent.parts == [(FIRST_EVENTS, 0.0), (EVENTS - FIRST_EVENTS, 60.0)]
    assert max(sent.times[:FIRST_EVENTS]) < min(sent.times[FIRST_EVENTS:])
    assert len(set(sent.times)) == EVENTS


def test_a_stream_that_ends_before_training_begins_sends_no_more(sent):
    with ReplayThread(None, _dataset(EVENTS), 60.0, 1):
        assert sent.first.wait(60)
    assert len(sent.parts) == 1


def test_a_stream_of_a_few_events_is_sent_at_once(sent):
    with ReplayThread(None, _dataset(7), 60.0, 1) as replay:
        replay.release()
        replay._thread.join(60)
        assert (replay.finished, replay.produced, sent.parts) == (True, 7, [(7, 0.0)])
