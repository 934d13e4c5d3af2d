from collections.abc import Callable
from typing import Any

import pytest

from streaming.events.faults import FAULTS


@pytest.fixture
def progress_record() -> Callable[..., dict[str, Any]]:
    """A progress.json in the middle of a run; keyword arguments replace parts of it."""

    def make(**changes: Any) -> dict[str, Any]:
        bins = 60
        record = {
            "time_s": 1.0,
            "state": "training",
            "attempt": 1,
            "restarts": 0,
            "pids": [4711, 4712],
            "step": 246,
            "workers": 2,
            "rows_read": 60_123,
            "events_trained": 59_976,
            "dead_letters": 2,
            "faults": dict.fromkeys(FAULTS, 0),
            "lag_messages": 4,
            "lag_events": 75_123,
            "loss": {
                "total": 6.123,
                "main": 5.5,
                "mimic_user": 0.31,
                "mimic_item": 0.41,
                "contrastive_sequence": 1.2,
                "contrastive_attribute": 2.2,
                "contrastive_item": 1.9,
            },
            "examples_per_s": 1043.2,
            "mean_examples_per_s": 990.0,
            "known_items": 1682,
            "progressive": {
                "kind": "exact",
                "bin_events": 1000,
                "sample": [100] * bins,
                "hits": [10] * 30 + [20] * 30,
                "popularity_hits": [7] * bins,
                "cooccurrence_hits": [5] * 30 + [15] * 30,
            },
            "served": {
                "kind": "served",
                "version": "v00000006",
                "bin_events": 1000,
                "sample": [0] * 10 + [30] * (bins - 10),
                "hits": [0] * 10 + [6] * (bins - 10),
                "dropped": 2345,
            },
            "checkpoint": {"step": 240, "path": "/x/step-00000240"},
            "index": {
                "version": "v00000006",
                "versions": 6,
                "items": 1682,
                "kind": "ivf_fp16",
                "nlist": 41,
                "nprobe": 9,
                "recall": 0.987,
            },
            "deltas": {
                "version": "v00000006",
                "number": 12,
                "age_s": 0.31,
                "published": 340,
                "share": 0.011,
                "refresh": "the clock",
                "problem": "",
                "p50_s": 0.6,
                "p99_s": 1.3,
                "run_p50_s": 0.7,
                "run_p99_s": 2.1,
            },
            "freshness": {
                "window_s": 300,
                "p50_s": 4.2,
                "p99_s": 9.5,
                "run_p50_s": 7.1,
                "run_p99_s": 13.9,
            },
            "error": None,
        }
        return record | changes

    return make
