"""What the co-occurrence counts cost a checkpoint, a step and memory, against a dense matrix of the same counts.

    python tests/benchmarks/cooccurrence.py [--json FILE] [--items N] [--events N] [--share S] [--runs N]

Events of a Zipf catalogue are counted; then, alternately: the pairs of a delta are taken after the last `--share` of
the events, all pairs are copied in slices (the longest pause of a full checkpoint), and the upper triangle of the
dense matrix is searched, as every checkpoint did before. Bytes are those of the Arrow tables, and of the three int64
columns of before. Then 50 events are scored, as a step of 256 events does, from the tables and from the matrix.
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
from numba import njit

from cluster.checkpoints.parts.pairs import PairPart
from model.baselines.cooccurrence import RECENT_ITEMS, StreamingCooccurrence
from tests.benchmarks.support.command import benchmark_parser, finish

MOST_DELTA, MOST_PAUSE, MOST_SCORES = 0.1, 0.1, 2.0
SCORED = 50


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
    """Medians over the runs; the counts grow by what a delta has."""
    rng = np.random.default_rng(1)
    model = StreamingCooccurrence()
    part = PairPart(model.pairs, writes=True)
    model.update(*_events(rng, 10, items))  # compiles
    counted_s = _timed(lambda: model.update(*_events(rng, events, items)))[0]
    counted_s -= _timed(lambda: _events(rng, events, items))[0]
    part.changes()
    dense_s, delta_s, pause_s, delta_bytes, scores_s, dense_scores_s = [], [], [], [], [], []
    for _ in range(runs):
        model.update(*_events(rng, int(events * share), items))
        seconds, changes = _timed(part.changes)
        delta_s.append(seconds)
        delta_bytes.append(sum(table.nbytes for table in changes.values()))
        pause_s.append(_longest_pause(part))
        count_II = _matrix(model)
        dense_s.append(_timed(functools.partial(_through_the_matrix, count_II))[0])
        recent_ER = _events(rng, SCORED, items)[1]
        seconds, scores = _timed(lambda recent_ER=recent_ER: model.scores(recent_ER, items))
        scores_s.append(seconds)
        norm_I = (1.0 / np.sqrt(np.maximum(model.pairs.total_I[: model.items], 1))).astype(np.float32)
        seconds, wanted = _timed(functools.partial(_dense_scores, count_II, norm_I, recent_ER))
        dense_scores_s.append(seconds)
        np.testing.assert_allclose(scores[:, : model.items], wanted, rtol=1e-5)
    full_bytes = sum(table.nbytes for _, table in part.base())
    result = {
        "name": "cooccurrence",
        "baseline": "a dense matrix of the counts, whole in every checkpoint",
        "pairs": len(model.pairs),
        "dense_s": statistics.median(dense_s),
        "delta_s": statistics.median(delta_s),
        "longest_pause_s": statistics.median(pause_s),
        "dense_bytes": 24 * len(model.pairs),
        "full_bytes": full_bytes,
        "delta_bytes": statistics.median(delta_bytes),
        "memory_bytes": model.pairs.nbytes,
        "dense_memory_bytes": 4 * items**2 + 8 * len(model.pairs),
        "count_s_per_event": counted_s / events,
        "scores_s": statistics.median(scores_s[1:]),  # the first ones compile
        "dense_scores_s": statistics.median(dense_scores_s[1:]),
        "required": {"delta_ratio": MOST_DELTA, "pause_ratio": MOST_PAUSE, "scores_ratio": MOST_SCORES},
    }
    result["delta_ratio"] = statistics.median(a / b for a, b in zip(delta_s, dense_s, strict=True))
    result["pause_ratio"] = statistics.median(a / b for a, b in zip(pause_s, dense_s, strict=True))
    result["scores_ratio"] = result["scores_s"] / result["dense_scores_s"]
    result["passed"] = (
        result["delta_ratio"] <= MOST_DELTA
        and result["pause_ratio"] <= MOST_PAUSE
        and result["scores_ratio"] <= MOST_SCORES
    )
    return result


def _events(rng: np.random.Generator, count: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by Zipf's law, with as many before each."""
    chance = 1.0 / np.arange(1, items + 1)
    below = np.cumsum(chance) / chance.sum()
    drawn = np.minimum(np.searchsorted(below, rng.random((count, 1 + RECENT_ITEMS))), items - 1)
    return drawn[:, 0].copy(), drawn[:, 1:].copy()


def _matrix(model: StreamingCooccurrence) -> np.ndarray:
    pairs = model.pairs.pairs()
    count_II = np.zeros((model.items, model.items), np.int32)
    count_II[pairs.low_P, pairs.high_P] = count_II[pairs.high_P, pairs.low_P] = pairs.count_P
    return count_II


def _through_the_matrix(count_II: np.ndarray) -> tuple[np.ndarray, ...]:
    """As version 0.1.0 did."""
    row, column = np.nonzero(np.triu(count_II))
    return row, column, count_II[row, column].astype(np.int64)


@njit(cache=True, nogil=True)
def _dense_scores(count_II: np.ndarray, norm_I: np.ndarray, recent_ER: np.ndarray) -> np.ndarray:
    """As the version before this one did."""
    items = norm_I.shape[0]
    out = np.zeros((recent_ER.shape[0], items), np.float32)
    for e in range(recent_ER.shape[0]):
        for r in range(recent_ER.shape[1]):
            recent = recent_ER[e, r]
            if recent < items:
                for i in range(items):
                    out[e, i] += count_II[recent, i] * norm_I[recent]
        for i in range(items):
            out[e, i] *= norm_I[i]
    return out


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
