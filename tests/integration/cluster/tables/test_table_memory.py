"""A table holds little beside its rows, optimizer state and ids, also while it grows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_a_million_ids_train_within_1_3_times_the_bytes_of_rows_state_and_24_per_id(tmp_path, optimizer):
    out = tmp_path / "out.json"
    program = ROOT / "tests" / "benchmarks" / "large_table.py"
    options = [
        "--ids",
        "1000000",
        "--batch",
        "20000",
        "--repeats",
        "1",
        "--optimizer",
        optimizer,
        "--json",
        out,
    ]
    subprocess.run([sys.executable, program, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    result = json.loads(out.read_text())
    assert result["ids"] == 1_000_000
    # Less than the bytes themselves would mean that the rows were not there.
    assert 0.9 < result["ratio"] <= 1.3
