"""The content of progress.json, from the beginning of an attempt."""

import math
from types import SimpleNamespace

from cluster.collectives import Collectives
from cluster.observability.freshness import Freshness
from cluster.observability.progress_file import read_progress
from cluster.training.control import Report
from cluster.training.progress_report import ProgressReporter
from cluster.training.steps.progressive import Curve
from retrieval.versions.store import VersionStore

RUN = SimpleNamespace(
    step=3,
    events_trained=7,
    notice="",
    catalogue=SimpleNamespace(item_count=4),
    curve=Curve(1000),
)


def _publisher():
    return SimpleNamespace(last=None, published=0, problem="", freshness=Freshness())


def _told(storage, **totals):
    ProgressReporter(storage, "a run", Collectives()).update(RUN, Report(figures=totals), _publisher())
    return read_progress(storage)


def test_before_anything_was_published_no_version_is_live(tmp_path):
    assert _told(tmp_path)["index"] is None


def test_a_resumed_run_tells_the_live_version_before_it_publishes_one(tmp_path):
    store = VersionStore(tmp_path / "index")
    building = store.begin()
    (building.path / "x").write_bytes(b"x")
    figures = {"items": 9, "kind": "flat", "nlist": 1, "nprobe": 1, "recall": 1.0}
    store.promote(store.commit(building, figures).name)
    assert _told(tmp_path)["index"] == {"version": "v00000001", **figures, "versions": 0, "gate": None}


def test_the_lag_is_told_in_events_and_unknown_until_a_message_was_decoded(tmp_path):
    found = _told(tmp_path, lag_messages=1094, lag_events=75_000.4)
    assert (found["lag_messages"], found["lag_events"]) == (1094, 75_000)
    assert _told(tmp_path, lag_messages=1094, lag_events=math.nan)["lag_events"] is None
