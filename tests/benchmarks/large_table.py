"""10 M ids of 64 columns with row Adam train in one process: peak memory against what it must hold, and the pace.

    python tests/benchmarks/large_table.py [--json FILE] [--ids N] [--dim N] [--optimizer adam|adagrad] [--batch N]

Every id gets its row by a training step (of new ids, later of known ones), so all of values, moments,
map and counts is touched. `ratio` is the growth of the resident set since before the table was made, at its peak, over
the bytes of rows and optimizer state and 24 bytes per id; at most 1.3 is asked for.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from tests.benchmarks.support.command import benchmark_parser, finish

ALLOWED = 1.3
_PER_ID = 24


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--optimizer", choices=["adam", "adagrad"], default="adam")
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10, help="steps on known ids at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.ids, arguments.dim, arguments.optimizer, arguments.batch, arguments.repeats)
    return finish(result, arguments.json)


def measure(ids: int, dim: int, optimizer: str, batch: int, repeats: int) -> dict[str, Any]:
    """Train every id once and some of them again."""
    train(_table(dim, optimizer), np.arange(batch))  # compiles, and has the arrays of a step once
    before = resident_bytes()
    reset_peak()
    table = _table(dim, optimizer)
    rng, wall, cpu = np.random.default_rng(1), time.perf_counter(), time.process_time()
    for start in range(0, ids, batch):
        train(table, np.arange(start, min(start + batch, ids)) * 0x9E37_79B1)
    made_s, made_cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    cpu = time.process_time()
    for _ in range(repeats):
        train(table, rng.choice(ids, batch, replace=False, shuffle=False) * 0x9E37_79B1)
    known_cpu_s = time.process_time() - cpu
    assert len(table) == ids
    peak = peak_bytes() - before
    state = sum(t[0].numel() * t.element_size() for t in table.state.values())
    raw = ids * (4 * dim + state + _PER_ID)
    return {
        "name": "large_table",
        "ids": ids,
        "dim": dim,
        "optimizer": optimizer,
        "peak_gb": peak / 1e9,
        "raw_gb": raw / 1e9,
        "ratio": peak / raw,
        "allowed": ALLOWED,
        "passed": peak / raw <= ALLOWED,
        "whole_process_peak_gb": peak_bytes() / 1e9,
        "new_rows_per_cpu_s": ids / made_cpu_s,
        "known_rows_per_cpu_s": batch * repeats / known_cpu_s if repeats else None,
        "made_in_s": made_s,
    }


def _table(dim: int, optimizer: str) -> ShardedEmbedding:
    return ShardedEmbedding(dim, Collectives(), row_optimizer(optimizer), seed=1, device=torch.device("cpu"))


def train(table: ShardedEmbedding, ids: np.ndarray) -> None:
    """One step in which every row has a gradient; of the least loss there is, whose arrays are not the table's."""
    lookup = table.lookup(np.zeros(ids.shape[0], np.int16), ids, time_ms=1)
    lookup.rows_UD.sum().backward()
    table.apply_gradients(lookup, 0.01)


def resident_bytes() -> int:
    return _status("VmRSS:")


def peak_bytes() -> int:
    return _status("VmHWM:")


def reset_peak() -> None:
    """So that the peak is of what comes now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
