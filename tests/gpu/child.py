"""The part of a run that may crash: tests or figures one after the other, with the start and end of each recorded.

    python -m tests.gpu.child tests|figures LOG UNTIL

A crash inside CUDA or Faiss ends this process, and an error of CUDA makes every later call fail. Then `__main__` starts
it again, and it continues with what the log does not have. Nothing begins after UNTIL, a time of `time.monotonic`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.gpu.log import BROKEN, Log, line_of

TIME_UP = "not run: the time was up"


class Outcomes:
    """A pytest plugin: notes what becomes of each test, leaves out those noted already and those that come too late."""

    def __init__(self, log: Log, until: float) -> None:
        self._log, self._until, self._begun = log, until, set(log.begun())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Long tests last, so that a limit of time costs as few as it can."""
        items[:] = [item for item in items if item.nodeid not in self._begun]
        items.sort(key=lambda item: "fifty_steps" in item.nodeid)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before a test."""
        if time.monotonic() > self._until:
            pytest.skip(TIME_UP)
        self._log.add(begun=item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call, or what kept it from being called."""
        if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
            return
        self._log.add(
            ended=report.nodeid,
            test=report.nodeid.removeprefix("tests/gpu/"),
            outcome="could not run" if report.outcome == "skipped" else report.outcome,
            seconds=round(report.duration, 2),
            why=_last_line(report) if report.outcome != "passed" else "",
        )
        if report.outcome == "failed" and not cuda_works():
            os._exit(BROKEN)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be imported."""
        if report.failed and report.nodeid not in self._begun:
            why = str(report.longrepr).strip().splitlines()[-1]
            self._log.add(begun=report.nodeid)
            self._log.add(
                ended=report.nodeid, test=report.nodeid, outcome="failed", seconds=0.0, why=why[:300]
            )


def cuda_works() -> bool:
    """Whether this process can still use its GPU; true where there is none."""
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return float(torch.ones(2, device="cuda").sum()) == 2.0
    except RuntimeError:
        return False


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
    return (lines[0] if lines else str(report.longrepr).strip()[-200:])[:300]


def run_tests(log: Log, until: float) -> None:
    """All of tests/gpu that the log has not."""
    timeout = 900 if os.environ.get("FRESHET_TEST_DEVICE") == "cpu" else 120
    arguments = ["tests/gpu", "-q", "--tb=short", "-p", "no:cacheprovider", f"--timeout={timeout}"]
    pytest.main(arguments, [Outcomes(log, until)])


def run_figures(log: Log, until: float) -> None:
    """All groups of figures that the log has not; the rates that the floors come from are in the log, too."""
    from tests.gpu.figures import GROUPS, measured

    rates: dict[str, float] = {}
    for entry in log.entries():
        rates |= entry.get("rates", {})
    for group in [group for group in GROUPS if group not in log.begun()]:
        log.add(begun=group)
        if time.monotonic() > until:
            log.add(ended=group, figure=group, why=TIME_UP)
            continue
        for figure in measured(group, rates):
            log.add(**figure)
            print(line_of(figure), flush=True)
        log.add(ended=group, rates=rates)
        if not cuda_works():
            os._exit(BROKEN)


if __name__ == "__main__":
    {"tests": run_tests, "figures": run_figures}[sys.argv[1]](Log(Path(sys.argv[2])), float(sys.argv[3]))
