"""Runs every check that needs a GPU, then every figure, and writes the results.

    python -m tests.gpu [--report gpu-report.json] [--seconds 420] [--only tests|figures]

Both run in separate processes (`child.py`), so a crash loses only the check in which it happens.
FRESHET_TEST_DEVICE=cpu rehearses it on a CPU, at small sizes; what cannot run there is listed as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.gpu.log import BROKEN, Log, line_of

_MOST_CHILDREN = 8
_SHARE_OF_TESTS = 0.65
"""Of --seconds; no further test is begun after it, so that there is time for figures."""
_LATEST_S = 130.0
"""How much later a process is killed that hangs where pytest's own limit does not reach."""
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a limit of time leaves what there is by then
    started, report = time.monotonic(), {"machine": machine(), "tests": [], "figures": []}
    with TemporaryDirectory() as folder:
        log = Log(Path(folder) / "log")
        try:
            for kind, share in (("tests", _SHARE_OF_TESTS), ("figures", 1.0)):
                if asked.only in (None, kind):
                    in_children(kind, log, started + (1.0 if asked.only else share) * asked.seconds)
        finally:
            report["tests"] = [e for e in log.entries() if "test" in e]
            report["figures"] = [e for e in log.entries() if "figure" in e]
            report["seconds"] = round(time.monotonic() - started, 1)
            Path(asked.report).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    return int(
        any(t["outcome"] == "failed" for t in report["tests"]) or any("why" in f for f in report["figures"])
    )


def child(kind: str, log: Log, until: float) -> list[str]:
    """The command of a process that runs what the log has not."""
    return [sys.executable, "-m", "tests.gpu.child", kind, str(log.path), str(until)]


def in_children(kind: str, log: Log, until: float) -> None:
    """Run tests or figures to their end, in as many processes as it takes: each that dies costs what it was at."""
    for _ in range(_MOST_CHILDREN):
        try:
            left_s = max(0.0, until - time.monotonic())
            status = subprocess.run(child(kind, log, until), timeout=left_s + _LATEST_S).returncode
            how = f"its process ended with status {status}"
        except subprocess.TimeoutExpired:
            status, how = 1, "it did not end in time and was killed"
        at = log.unfinished()
        if at is None and status == 0:
            return
        if at is not None or status != BROKEN:
            _note_death(kind, log, at, how)
        if at is None and status != BROKEN:
            return  # outside of any test or figure: it would only die again


def _note_death(kind: str, log: Log, at: str | None, how: str) -> None:
    name = (at or kind).removeprefix("tests/gpu/")
    what = {"test": name, "outcome": "failed", "seconds": 0.0} if kind == "tests" else {"figure": name}
    log.add(ended=at, why=how, **what)


def table(report: dict[str, Any]) -> str:
    """What a person reads: machine, tests, figures with their floors."""
    lines = ["", "  ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    for test in report["tests"]:
        lines.append(f"{test['outcome']:14} {test['seconds']:7.2f} s  {test['test']}")
        if test["why"]:
            lines.append(f"{'':26}{test['why'][:160]}")
    lines.append("")
    lines += [line_of(figure) for figure in report["figures"]]
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
