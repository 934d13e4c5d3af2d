import time

import pytest

from deploy.command.times import ago, clock, duration, local_time, short_duration


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_moments_are_iso_in_the_machines_zone(berlin):
    assert local_time(1_764_230_000) == "2025-11-27 08:53:20+01:00"
    assert local_time(1_784_230_000.25, timespec="milliseconds") == "2026-07-16 21:26:40.250+02:00"
    assert clock(1_764_230_000) == "2025-11-27 08:53"


def test_durations_have_the_units_that_people_use():
    assert [duration(s) for s in (0.4, 59.7, 7440, 49 * 3600)] == ["0 s", "1 min 0 s", "2 h 4 min", "2 d 1 h"]
    assert [short_duration(s) for s in (-3, 59, 185, 7440, 200 * 3600)] == [
        "0 s",
        "59 s",
        "3 min",
        "2 h",
        "8 d",
    ]
    assert ago(100, now=105) == "5 s ago"
    assert ago(100, now=99) == "now"
