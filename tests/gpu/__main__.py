"""Runs every check that needs a GPU, then every figure, and writes what came of them.

    python -m tests.gpu [--report gpu-report.json] [--seconds 420] [--only tests|figures]

FRESHET_TEST_DEVICE=cpu rehearses it on a CPU, at small sizes; what cannot run there is listed as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest

_PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "pyarrow",
    "safetensors",
    "faiss-gpu",
    "faiss-cpu",
    "nvidia-nccl-cu13",
)


class Outcomes:
    """A pytest plugin: what became of each test."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call, or what kept it from being called."""
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            outcome = "could not run" if report.outcome == "skipped" else report.outcome
            self.found.append(
                {
                    "test": report.nodeid.removeprefix("tests/gpu/"),
                    "outcome": outcome,
                    "seconds": round(report.duration, 2),
                    "why": _last_line(report) if outcome != "passed" else "",
                }
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be imported."""
        if report.failed:
            why = str(report.longrepr).strip().splitlines()[-1]
            self.found.append({"test": report.nodeid, "outcome": "failed", "seconds": 0.0, "why": why[:300]})


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
    return (lines[0] if lines else str(report.longrepr).strip()[-200:])[:300]


def no_gpu() -> str:
    """Why nothing can be checked here; empty if it can."""
    if os.environ.get("FRESHET_TEST_DEVICE") == "cpu":
        return ""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        return ""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"torch {torch.__version__} (built with {build}) sees no CUDA device; FRESHET_TEST_DEVICE=cpu rehearses"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {
        "device": "cpu (a rehearsal)",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
    if os.environ.get("FRESHET_TEST_DEVICE") != "cpu":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "device": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found


def main() -> int:
    """The exit status: 0 if no test failed and every figure was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--report", default="gpu-report.json")
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="of all together; what is left over is said"
    )
    parser.add_argument("--only", choices=("tests", "figures"))
    asked = parser.parse_args()
    if reason := no_gpu():
        print(f"make test-gpu: {reason}", file=sys.stderr)
        return 1
    started, report = time.monotonic(), {"machine": machine(), "tests": [], "figures": []}

    def write() -> None:
        report["seconds"] = round(time.monotonic() - started, 1)
        Path(asked.report).write_text(json.dumps(report, indent=1) + "\n")

    if asked.only != "figures":
        outcomes = Outcomes()
        arguments = ["tests/gpu", "-q", "--tb=short", "-p", "no:cacheprovider", "--timeout=120"]
        report["status_of_pytest"] = int(pytest.main(arguments, [outcomes]))
        report["tests"] = outcomes.found
        write()
    if asked.only != "tests":
        from tests.gpu.figures import measured

        for figure in measured(deadline=started + asked.seconds):
            report["figures"].append(figure)
            write()
    print(table(report))
    return int(
        any(t["outcome"] == "failed" for t in report["tests"]) or any("why" in f for f in report["figures"])
    )


def table(report: dict[str, Any]) -> str:
    """What a person reads: machine, tests, figures with their floors."""
    lines = ["", "  ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    for test in report["tests"]:
        lines.append(f"{test['outcome']:14} {test['seconds']:7.2f} s  {test['test']}")
        if test["why"]:
            lines.append(f"{'':26}{test['why'][:160]}")
    lines.append("")
    for figure in report["figures"]:
        floor = f"  floor {figure['floor']:.4g} ({figure['floor_of']})" if "floor" in figure else ""
        value = figure.get("why") or f"{figure['value']:.4g} {figure['unit']}{floor}"
        lines.append(f"{figure['figure']:52} {value}")
    counts = {
        o: sum(t["outcome"] == o for t in report["tests"]) for o in ("passed", "failed", "could not run")
    }
    lines += [
        "",
        ", ".join(f"{n} tests {outcome}" for outcome, n in counts.items()) + f", {report['seconds']} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
