"""What the co-occurrence counts cost a checkpoint: copying what they hold against going through the dense matrix.

    python tests/benchmarks/cooccurrence.py [--json FILE] [--items N] [--events N] [--share S] [--runs N]

Events of a Zipf catalogue are counted; then, alternately: the pairs of a delta are taken after the last `--share` of
the events, all pairs are copied in slices (the longest pause of a full checkpoint), and the upper triangle of the
dense matrix is searched, as every checkpoint did before. Bytes are those of the Arrow tables, and of the three int64
columns of before.
"""

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from cluster.checkpoints.pair_files import PairPart
from model.baselines.cooccurrence import RECENT_ITEMS, StreamingCooccurrence
from tests.benchmarks.support.command import benchmark_parser, finish

MOST_DELTA, MOST_PAUSE = 0.1, 0.1


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=8_000)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.02, help="of the events that a delta has")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    result = measured(arguments.items, arguments.events, arguments.share, arguments.runs)
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "json"}
    return finish(result, arguments.json)


def measured(items: int, events: int, share: float, runs: int) -> dict[str, Any]:
    """Medians over the runs; the matrix stays the same one and grows by what a delta has."""
    rng = np.random.default_rng(1)
    model = StreamingCooccurrence()
    part = PairPart(model.pairs, writes=True)
    model.update(*_events(rng, events, items))
    part.changes()
    dense_s, delta_s, pause_s, delta_bytes = [], [], [], []
    for _ in range(runs):
        model.update(*_events(rng, int(events * share), items))
        seconds, changes = _timed(part.changes)
        delta_s.append(seconds)
        delta_bytes.append(sum(table.nbytes for table in changes.values()))
        pause_s.append(_longest_pause(part))
        dense_s.append(_timed(lambda: _through_the_matrix(model))[0])
    full_bytes = sum(table.nbytes for _, table in part.base())
    result = {
        "name": "cooccurrence",
        "baseline": "the upper triangle of the dense matrix, whole in every checkpoint",
        "pairs": len(model.pairs),
        "dense_s": statistics.median(dense_s),
        "delta_s": statistics.median(delta_s),
        "longest_pause_s": statistics.median(pause_s),
        "dense_bytes": 24 * len(model.pairs),
        "full_bytes": full_bytes,
        "delta_bytes": statistics.median(delta_bytes),
        "required": {"delta_ratio": MOST_DELTA, "pause_ratio": MOST_PAUSE},
    }
    result["delta_ratio"] = statistics.median(a / b for a, b in zip(delta_s, dense_s, strict=True))
    result["pause_ratio"] = statistics.median(a / b for a, b in zip(pause_s, dense_s, strict=True))
    result["passed"] = result["delta_ratio"] <= MOST_DELTA and result["pause_ratio"] <= MOST_PAUSE
    return result


def _events(rng: np.random.Generator, count: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by Zipf's law, with as many before each."""
    chance = 1.0 / np.arange(1, items + 1)
    below = np.cumsum(chance) / chance.sum()
    drawn = np.minimum(np.searchsorted(below, rng.random((count, 1 + RECENT_ITEMS))), items - 1)
    return drawn[:, 0].copy(), drawn[:, 1:].copy()


def _through_the_matrix(model: StreamingCooccurrence) -> tuple[np.ndarray, ...]:
    """As version 0.1.0 did."""
    count_II = model.pairs.count_II[: model.items, : model.items]
    row, column = np.nonzero(np.triu(count_II))
    return row, column, count_II[row, column].astype(np.int64)


def _longest_pause(part: PairPart) -> float:
    """Seconds of the slowest slice of a full checkpoint."""
    slices, longest, more = part.base(), 0.0, True
    while more:
        seconds, piece = _timed(functools.partial(next, slices, None))
        longest, more = max(longest, seconds), piece is not None
    return longest


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


if __name__ == "__main__":
    sys.exit(main())
