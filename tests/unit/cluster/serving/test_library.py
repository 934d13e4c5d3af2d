"""docs/guide/library.md is a program that runs as it stands, and searching needs no more than Faiss."""

import subprocess
import sys
import threading
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from tests.support.documents import ROOT, python_blocks
from tests.support.index_versions import publish_run
from tests.support.unit_runs import open_run, small_config, train_steps

PAGE = ROOT / "docs" / "guide" / "library.md"
SEARCH = "from retrieval import Searcher, read_item_vectors"
NOT_NEEDED = {
    "torch",
    "ray",
    "kafka",
    "numba",
    "omegaconf",
    "typer",
    "cluster",
    "streaming",
    "model",
    "deploy",
}


def _imported_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.usefixtures("one_thread")
def test_the_program_of_the_library_page_runs(tmp_path, monkeypatch, capsys):
    run = open_run(replace(small_config(), storage_path=str(tmp_path / "runs" / "movies")))
    train_steps(run, 1)
    version = publish_run(run, run.config).version
    assert version is not None
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(PAGE)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    told = capsys.readouterr().out
    assert told.count(version.name) == 5 + 1 + 1
    assert pq.read_table("item_vectors.parquet").num_rows == run.catalogue.item_count
    assert names["ids"][0] not in names["found"][0]  # type: ignore[index]
    assert "following index versions" not in {thread.name for thread in threading.enumerate()}


def test_searching_imports_faiss_and_arrow_and_nothing_heavier():
    assert _imported_by(SEARCH) >= {"faiss", "pyarrow"}
    assert _imported_by(SEARCH) & NOT_NEEDED == set()


def test_settings_and_storage_are_imported_without_faiss():
    assert "faiss" not in _imported_by("import retrieval.config, retrieval.storage.opening")
