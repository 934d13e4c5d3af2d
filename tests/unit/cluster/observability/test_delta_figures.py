"""The figures of deltas: the newest one, its age, how many there were, and how fresh they made events."""

import numpy as np
import pytest

from cluster.observability.delta_figures import DeltaFigures


def test_before_the_first_delta_nothing_is_known():
    found = DeltaFigures().to_json()
    assert (found["version"], found["number"], found["age_s"], found["published"]) == (None, 0, None, 0)
    assert found["p99_s"] is found["run_p99_s"] is None


def test_the_newest_delta_its_age_and_the_freshness_of_all_are_told():
    now = [100.0]
    figures = DeltaFigures(clock=lambda: now[0])
    figures.committed("v00000002", 7, 0.01, np.array([9.0]))
    now[0] += 301.0
    figures.committed("v00000003", 1, 0.002, np.array([0.5, 0.6]))
    now[0] += 0.25
    figures.refresh = "share .021 is over index.max_delta_share .02"
    found = figures.to_json()
    assert (found["version"], found["number"], found["share"]) == ("v00000003", 1, 0.002)
    assert found["age_s"] == pytest.approx(0.25)
    assert found["published"] == 2
    assert found["p99_s"] == pytest.approx(0.6, rel=0.12)
    assert found["run_p99_s"] == pytest.approx(9.0, rel=0.12)
    assert found["refresh"].startswith("share")
