"""Memory and time of a refresh across ranks, from a checkpoint that is generated.

    python tests/benchmarks/refresh_memory.py [--json FILE] [--items N] [--ranks W] [--threads T] [--folder DIR]

The measure is each process's anonymous memory (RssAnon) above what it had before the refresh began: rows, vectors, and
catalogue are mapped from files. The baseline is what a rank may have: its shard of the index and 512 MB. At 10 million
items of 64 columns the folder takes 12 GB while the version is built.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.refresh import refresh_from
from model.config import ModelConfig
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.support.anonymous_memory import AnonymousPeak
from tests.support.large_checkpoint import write_large_checkpoint
from tests.support.ranks import run_on_ranks

DIM = 64
SHARD_BYTES_PER_ITEM = 2 * DIM + 8
ALLOWED_BYTES = 512 * 10**6


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="an empty folder on a disk with room")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return finish(measure(arguments, Path(folder)), arguments.json)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    config = config_of(folder)
    began = time.monotonic()
    place = write_large_checkpoint(config, arguments.items).location
    written_s = time.monotonic() - began
    began = time.monotonic()
    ranks = run_on_ranks(refresh, arguments.ranks, config, place, arguments.threads, timeout_s=6 * 3600)
    report = json.loads((folder / "report.json").read_text())
    shard = SHARD_BYTES_PER_ITEM * arguments.items / arguments.ranks
    peak = max(peak for peak, _ in ranks)
    return {
        "items": arguments.items,
        "ranks": arguments.ranks,
        "checkpoint_written_s": written_s,
        "wall_s": time.monotonic() - began,
        "cpu_s": sum(cpu_s for _, cpu_s in ranks),
        "seconds": report["seconds"],
        "nlist": report["nlist"],
        "nprobe": report["nprobe"],
        "recall": report["recall"],
        "version": report["version"],
        "peak_mb": peak / 1e6,
        "baseline_mb": (shard + ALLOWED_BYTES) / 1e6,
        "ratio": peak / (shard + ALLOWED_BYTES),
        "passed": peak <= shard + ALLOWED_BYTES,
        "folder_gb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9,
    }


def config_of(folder: Path) -> FreshetConfig:
    """Towers that were never trained find little, so recall is measured, but is no gate."""
    config = FreshetConfig(model=ModelConfig(dim=DIM), device="cpu", storage_path=str(folder))
    config.index.min_recall, config.index.max_probe_fraction, config.index.max_imbalance = 0.0, 0.05, 1e9
    return config


def refresh(rank: int, config: FreshetConfig, place: str, threads: int) -> tuple[int, float]:
    """The peak of this rank in bytes, and its CPU-seconds."""
    torch.set_num_threads(threads)
    began = sum(os.times()[:2])
    with AnonymousPeak() as peak:
        report = Path(config.storage_path) / "report.json"
        refresh_from(config, Collectives(), torch.device("cpu"), checkpoint_path=place, report_path=report)
    return peak.bytes, sum(os.times()[:2]) - began


if __name__ == "__main__":
    raise SystemExit(main())
