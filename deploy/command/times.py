"""Moments and durations as people read them: ISO local time, and how long ago."""

from __future__ import annotations

import time
from datetime import datetime


def local_time(seconds: float, *, timespec: str = "seconds") -> str:
    """`2026-11-27 10:13:43+01:00`: seconds since 1970 in the time zone of this machine."""
    moment = datetime.fromtimestamp(seconds).astimezone()
    return moment.isoformat(" ", timespec)


def clock(seconds: float) -> str:
    """`2026-11-27 10:13`: like `local_time`, for a table with the time zone in its header."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def ago(seconds: float, now: float | None = None) -> str:
    """`5 s ago`: how long ago a time was; a future time, from another machine's clock, is `now`."""
    spent = (time.time() if now is None else now) - seconds
    return f"{duration(spent)} ago" if spent >= 0.5 else "now"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 4 min`, `3 d 5 h`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short_duration(seconds: float) -> str:
    """`42 s`, `3 min`, `2 h`, `5 d`: the largest unit of a duration."""
    return " ".join(duration(max(0.0, seconds)).split(" ")[:2])
