"""The same training steps by two source trees, and the floor that matrix products set for them."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

_SIDE = 1024
_TRIES = 30


class SteppingTree:
    """A process that trains with one tree's code (`stepping_tree.py`).

    Args:
        tree: a checkout of this repository.
        batches: an Arrow file of training batches.
        model: settings of the model that both trees have.
    """

    def __init__(self, tree: Path, batches: Path, model: dict[str, Any]) -> None:
        program = Path(__file__).with_name("stepping_tree.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), str(tree.resolve()), str(batches), json.dumps(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def train(self, steps: int) -> float:
        """CPU seconds of the next steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def against_tree(
    baseline: Path,
    batches: Sequence[pa.RecordBatch],
    folder: Path,
    model: dict[str, Any],
    *,
    warmup: int,
    steps: int,
    runs: int,
) -> dict[str, Any]:
    """Ratio of examples per CPU second, this tree's over the baseline's, from alternating runs on the same batches."""
    file = folder / "batches.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    ours, theirs = (SteppingTree(tree, file, model) for tree in (Path(__file__).parents[3], baseline))
    try:
        for tree in (theirs, ours):
            tree.train(warmup)
        pairs = [(theirs.train(steps), ours.train(steps)) for _ in range(runs)]
    finally:
        theirs.close()
        ours.close()
    ratios = [before / now for before, now in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ms_of_a_step": 1e3 * statistics.median(now for _, now in pairs) / steps,
        "baseline_cpu_ms_of_a_step": 1e3 * statistics.median(before for before, _ in pairs) / steps,
    }


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def sgemm_flops_per_s() -> float:
    """The best rate of a float32 product of 1,024 rows and columns on this thread, CPU time."""
    one, other = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    least = float("inf")
    for _ in range(_TRIES):
        started = time.thread_time()
        one @ other
        least = min(least, time.thread_time() - started)
    return 2 * _SIDE**3 / least
