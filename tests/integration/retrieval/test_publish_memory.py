"""A rank that builds a version holds its shard and slices of vectors, never all vectors of its items."""

import json
import subprocess
import sys

# Few lists and queries: what is measured is memory, not speed.
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from retrieval.config import IndexConfig
from retrieval.versions.publish import publish
from retrieval.versions.store import VersionStore

folder, items = Path(sys.argv[1]), int(sys.argv[2])

def slices(count):
    rng = np.random.default_rng(1)
    for start in range(0, count, 8192):
        ids = np.arange(start, min(start + 8192, count))
        yield ids, rng.random((ids.shape[0], 64), np.float32) - np.float32(0.5)

def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def build(count, name):
    attempt = folder / name
    attempt.mkdir()
    config = IndexConfig(device="cpu", nlist=32, nprobe=32, build_iterations=1, sample_per_list=64, min_recall=0.9)
    report = publish(
        VersionStore(folder / "index"), attempt, slices(count), next(slices(16))[1], config, metadata={}, seed=1
    )
    assert report.version is not None, report.gate.why_not()
    return report.version

build(20_000, "first")  # what imports and buffers take
before = status("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
version = build(items, "second")
sizes = {entry["name"]: entry["size"] for entry in version.entries}
print(json.dumps({"grown": status("VmHWM:") - before, "sizes": sizes}))
"""


def test_the_peak_is_the_shard_and_slices_while_the_vectors_are_many_times_these(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, "1500000"], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    shard, vectors = found["sizes"]["index-0000.faiss"], found["sizes"]["items-0000.arrow"]
    assert vectors > 390e6
    assert shard < 210e6
    assert found["grown"] < shard + 130e6 < vectors
