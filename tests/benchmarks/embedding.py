"""The embedding path alone: examples per second against TorchRec's row-wise EmbeddingCollection and SparseAdam.

    python tests/benchmarks/embedding.py [--json FILE] [--runs N] [--steps N]        (PROCESSES=2 for two ranks)

A step is lookup, exchange, backward and update of batch x 51 ids, uniform over 1 M rows of 64 columns; uniform ids are
the hardest for the caches, and leave nothing to gain by our dedup. TorchRec has a virtual environment of its own and
row-wise Adagrad, the only one of the two that it has on a CPU: `ratio` compares that. `ratio_sparse_adam` is row Adam
here against nn.Embedding + SparseAdam, on several ranks a replica each with gathered gradients. Every run is a fresh
group of single-threaded processes over gloo; runs alternate, ratios are medians. On a machine that does other work as
well, trust `ratio_by_cpu`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.peer_environment import PeerError, peer_environment

ROOT = Path(__file__).parents[2]
REQUIRED, REQUIRED_SPARSE_ADAM = 1.3, 1.8
_STEPS = ROOT / "tests" / "benchmarks" / "support" / "embedding_steps.py"
_PEER = (
    ["torch==2.13.0", "numpy"],
    ["--no-deps", "torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0"],
    # What torchrec imports; its own dependencies would install the CUDA build of fbgemm over the other.
    ["cloudpickle", "tensordict==0.15", "torchmetrics==1.0.3", "tqdm", "pyre-extensions", "typing-inspect"],
)
_KINDS = ("torchrec", "ours-adagrad", "sparse-adam", "ours-adam")


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--processes", type=int, default=int(os.environ.get("PROCESSES", "1")))
    sizes = {"runs": 5, "steps": 20, "warmup": 3, "batch": 1024, "items": 51, "dim": 64, "rows": 1_000_000}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    result = measure({name: getattr(arguments, name) for name in sizes}, arguments.processes)
    return finish(result, arguments.json)


def measure(settings: dict[str, int], processes: int) -> dict[str, Any]:
    """Alternating runs of every kind, and the ratios of their medians."""
    peer = peer_environment("torchrec", *_PEER)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    for _ in range(settings["runs"]):
        for kind in _KINDS:
            python = peer if kind == "torchrec" else Path(sys.executable)
            runs[kind].append(run(python, kind, processes, settings))
    wall = {kind: median_rate(done, "wall_s") for kind, done in runs.items()}
    cpu = {kind: median_rate(done, "cpu_s") for kind, done in runs.items()}
    ratio, sparse = wall["ours-adagrad"] / wall["torchrec"], wall["ours-adam"] / wall["sparse-adam"]
    return {
        "name": "embedding",
        "baseline": "TorchRec 1.8 row-wise EmbeddingCollection, gloo, row-wise Adagrad",
        "processes": processes,
        "ratio": ratio,
        "required": REQUIRED,
        "ratio_by_cpu": cpu["ours-adagrad"] / cpu["torchrec"],
        "ratio_sparse_adam": sparse,
        "required_sparse_adam": REQUIRED_SPARSE_ADAM,
        "ratio_sparse_adam_by_cpu": cpu["ours-adam"] / cpu["sparse-adam"],
        "passed": ratio >= REQUIRED and sparse >= REQUIRED_SPARSE_ADAM,
        "examples_per_s": wall,
        "examples_per_cpu_s": cpu,
        "settings": settings,
        "runs": runs,
    }


def median_rate(runs: list[dict[str, float]], by: str) -> float:
    """Examples per second of the median run."""
    return statistics.median(run["examples"] / run[by] for run in runs)


def run(python: Path, kind: str, processes: int, settings: dict[str, int]) -> dict[str, float]:
    """One group of processes; what its rank 0 printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory() as folder:
        group = [
            subprocess.Popen(
                [python, _STEPS, kind, str(rank), str(processes), f"{folder}/store", json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(processes)
        ]
        told = [process.communicate() for process in group]
    for process, (_, problems) in zip(group, told, strict=True):
        if process.returncode:
            raise PeerError(f"{kind} ended with status {process.returncode}: {problems[-2000:]}")
    found: dict[str, float] = json.loads(told[0][0].splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
