"""The map of ids to rows at 10 M ids: inserts and lookups per second against what else a Python program can install.

    python tests/benchmarks/id_map.py [--json FILE] [--ids N] [--runs N]

Every timing is a fresh single-threaded process (tests/benchmarks/support/peer_id_map.py); the peers have a virtual
environment of their own, with the NumPy and Numba of this one. Inserts grow an empty map by blocks of 65,536 random
int64 ids. An Index of pandas and a value set of pyarrow or polars are no maps that grow: they are built from all ids
at once, which stands beside as `build` (ours: one call with all ids), and take part in the lookups. The first round
times all of them, later rounds ours and the best peer of either kind; ratios are of medians, by CPU seconds.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numba
import numpy as np

from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.peer_environment import peer_environment, run_peer

ROOT = Path(__file__).parents[2]
REQUIRED = 2.0
GROWING = ("dict", "numba typed.Dict", "hirola")
BUILT = ("pandas Index", "pyarrow index_in", "polars join")
_SCRIPT = ROOT / "tests" / "benchmarks" / "support" / "peer_id_map.py"


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    result = measure(arguments.ids, arguments.runs)
    return finish(result, arguments.json)


def measure(ids: int, runs: int) -> dict[str, Any]:
    """All maps once, then ours and the best in turns."""
    names = ("ours", "ours at once", *GROWING, *BUILT)
    timings = {name: [timed(name, ids)] for name in names}
    inserting = fastest(timings, GROWING, "insert_cpu_s")
    finding = fastest(timings, (*GROWING, *BUILT), "find_cpu_s")
    for _ in range(runs - 1):
        for name in dict.fromkeys(("ours", inserting, finding)):
            timings[name].append(timed(name, ids))
    insert, find = speedup(timings, inserting, "insert_cpu_s"), speedup(timings, finding, "find_cpu_s")
    building = fastest(timings, ("pandas Index", "pyarrow index_in"), "insert_cpu_s")
    return {
        "name": "id_map",
        "ids": ids,
        "baseline": {"insert": inserting, "find": finding, "build": building},
        "ratio": min(insert, find),
        "ratio_insert": insert,
        "ratio_find": find,
        "ratio_build": median(timings[building], "insert_cpu_s")
        / median(timings["ours at once"], "insert_cpu_s"),
        "ratio_insert_by_wall": speedup(timings, inserting, "insert_s"),
        "ratio_find_by_wall": speedup(timings, finding, "find_s"),
        "required": REQUIRED,
        "passed": min(insert, find) >= REQUIRED,
        "m_per_cpu_s": {
            name: {
                "insert": ids / median(done, "insert_cpu_s") / 1e6,
                "find": ids / median(done, "find_cpu_s") / 1e6,
            }
            for name, done in timings.items()
        },
        "runs": timings,
    }


def timed(name: str, ids: int) -> dict[str, float]:
    """One fresh process."""
    exact = [f"numpy=={np.__version__}", f"numba=={numba.__version__}"]
    peer = peer_environment("id-map", [*exact, "pyarrow", "pandas", "polars", "hirola"])
    python = Path(sys.executable) if name.startswith("ours") else peer
    os.environ["PYTHONPATH"] = str(ROOT)
    found: dict[str, float] = json.loads(
        run_peer([str(python), str(_SCRIPT), name, str(ids)]).splitlines()[-1]
    )
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


def fastest(timings: dict[str, list[dict[str, float]]], names: tuple[str, ...], by: str) -> str:
    return min(names, key=lambda name: median(timings[name], by))


def speedup(timings: dict[str, list[dict[str, float]]], peer: str, by: str) -> float:
    return median(timings[peer], by) / median(timings["ours"], by)


def median(runs: list[dict[str, float]], by: str) -> float:
    return statistics.median(run[by] for run in runs)


if __name__ == "__main__":
    sys.exit(main())
