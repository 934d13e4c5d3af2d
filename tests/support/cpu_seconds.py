"""`pytest --cpu`: CPU seconds by test file, in the tests' own process and in all that it starts.

Wall time says little where several files run side by side. Processes are sampled in /proc, because Ray's outlive their
parents and nobody of ours waits for them; what one used after the last sample is not counted.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_EVERY_S = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")
_SHOWN = 40
_PROPERTY = "cpu_s"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", action="store_true", help="print CPU seconds by test file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu"):
        config.pluginmanager.register(CpuSeconds(), "cpu-seconds")


class CpuSeconds:
    """The plugin: measures in the processes that run tests, and adds up in the one that reports."""

    def __init__(self) -> None:
        self._of_file: Counter[str] = Counter()
        self._below = _ProcessesBelow()
        self._before_s = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        used_s = self._below.used_s()
        report.user_properties = [*report.user_properties, (_PROPERTY, used_s - self._before_s)]
        self._before_s = used_s
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._of_file[report.location[0]] += sum(s for name, s in report.user_properties if name == _PROPERTY)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(f"CPU seconds: {self._of_file.total():.0f}")
        for file, seconds in self._of_file.most_common(_SHOWN):
            terminalreporter.line(f"{seconds:7.1f} {file}")


class _ProcessesBelow:
    """CPU time of this process and of every process that was ever seen below it, seconds."""

    def __init__(self) -> None:
        self._ticks: dict[tuple[int, int], int] = {}  # by process id and start
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="cpu seconds", daemon=True).start()

    def used_s(self) -> float:
        self._sample()
        return sum(self._ticks.values()) / _TICKS

    def _watch(self) -> None:
        while True:
            self._sample()
            threading.Event().wait(_EVERY_S)

    def _sample(self) -> None:
        with self._lock:
            found = {entry: _read(entry) for entry in Path("/proc").glob("[0-9]*")}
            processes = {int(entry.name): fields for entry, fields in found.items() if fields}
            ours = {pid for pid, start in self._ticks if pid in processes and processes[pid][1] == start}
            ours.add(os.getpid())
            more = True
            while more:
                more = {pid for pid, (parent, *_) in processes.items() if parent in ours} - ours
                ours |= more
            for pid in ours:
                _, start, ticks = processes[pid]
                self._ticks[pid, start] = ticks


def _read(process: Path) -> tuple[int, int, int] | None:
    """Parent, start and CPU ticks so far."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12])
