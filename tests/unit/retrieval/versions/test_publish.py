import json

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k
from retrieval.indexes.ivf import IndexInputError
from retrieval.indexes.parts import read_parts
from retrieval.versions.gate import overlap_of
from tests.unit.retrieval.conftest import clustered, unit

STAGES = ("items", "sample", "train", "add", "exact", "tune", "gate", "commit")


def failed(report):
    return [check.name for check in report.gate.checks if not check.passed]


def test_a_published_version_is_live_whole_and_says_what_it_was_built_of(store, put):
    vectors, queries = clustered(2000)
    report = put(
        vectors, queries, extra_files={"tower.bin": b"weights", ".lock": b""}, step=7, watermark_ms=99
    )
    live = store.current()
    assert live == report.version
    store.verify(live.name)
    assert (live.path / "tower.bin").read_bytes() == b"weights"
    manifest = json.loads((live.path / "manifest.json").read_text())
    assert {
        name: manifest[name] for name in ("step", "watermark_ms", "items", "dim", "kind", "recall_k")
    } == {
        "step": 7,
        "watermark_ms": 99,
        "items": 2000,
        "dim": 32,
        "kind": "ivf_fp16",
        "recall_k": 10,
    }
    assert manifest["recall"] == report.recall >= 0.97
    assert manifest["nprobe"] == report.nprobe <= report.nlist / 2
    assert {file["name"] for file in manifest["files"]} == {
        "index-0000.faiss",
        "items-0000.arrow",
        "tower.bin",
    }


def test_the_report_has_seconds_by_stage_and_is_ready_for_json(put):
    figures = json.loads(json.dumps(put(*clustered(1200)).figures()))
    assert set(figures["seconds"]) == {f"{stage}_s" for stage in STAGES}
    assert 0 < figures["scanned"] < 1200
    assert [check["name"] for check in figures["gate"]] == ["recall", "coverage", "imbalance"]


def test_without_queries_recall_is_measured_on_the_items(put):
    report = put(clustered(1200)[0])
    assert report.version is not None
    assert report.recall >= 0.97


def test_recall_below_the_gate_keeps_the_live_version_and_says_why(store, put, caplog):
    first = put(*clustered(2000))
    hard = unit(np.random.default_rng(0).normal(size=(2000, 64)))
    report = put(hard, hard[:0], IndexConfig(max_probe_fraction=0.02))
    assert report.version is None
    assert failed(report) == ["recall"]
    assert store.current() == first.version
    assert store.names() == ["v00000001", report.refused.name]
    assert "index.min_recall" in caplog.text


def test_missing_items_fail_the_coverage_gate(store, put):
    report = put(*clustered(1200), known_items=1300)
    assert failed(report) == ["coverage"]
    assert "0.9231" in report.gate.why_not()
    assert store.current() is None


@pytest.mark.parametrize("bad", ["items", "queries"])
def test_a_diverged_model_fails_a_gate_instead_of_the_training(store, put, caplog, bad):
    vectors, queries = clustered(1200)
    first = put(vectors, queries)
    (vectors if bad == "items" else queries)[3, 0] = np.nan
    report = put(vectors, queries)
    assert failed(report) == ["finite"]
    assert "diverged" in report.gate.why_not()
    assert ("first of items [30]" in caplog.text) == (bad == "items")
    assert store.current() == first.version


def test_queries_that_all_end_in_overlong_lists_fail_the_imbalance_gate(put):
    vectors, _ = clustered(2000)
    vectors[:1900] = unit(vectors[:1] + 0.001 * np.random.default_rng(0).normal(size=(1900, 32)))
    report = put(vectors, vectors[:100], IndexConfig(nlist=60, nprobe=1, max_imbalance=1.2, min_recall=0.0))
    assert failed(report) == ["imbalance"]


def test_results_that_change_too_much_fail_the_overlap_gate(store, put):
    vectors, queries = clustered(1200)
    config = IndexConfig(min_overlap=0.5)
    assert put(vectors, queries, config).version is not None
    assert put(vectors, queries, config).gate.checks[-1].value > 0.95
    shuffled = vectors[np.random.default_rng(0).permutation(1200)]
    report = put(shuffled, queries, config)
    assert failed(report) == ["overlap"]
    assert store.current().name == "v00000002"


def test_a_damaged_live_version_does_not_block_its_successor(store, put):
    first = put(*clustered(1200)).version
    (first.path / "index-0000.faiss").write_bytes(b"torn")
    report = put(*clustered(1200), config=IndexConfig(min_overlap=0.5, warm_start_iterations=1))
    assert store.current() == report.version
    assert report.version.name == "v00000002"


def test_a_warm_start_publishes_as_good_an_index(put):
    config = IndexConfig(warm_start_iterations=1)
    vectors, queries = clustered(2000)
    put(vectors, queries, config)
    drifted = unit(vectors + 0.05 * np.random.default_rng(0).normal(size=vectors.shape))
    report = put(drifted, queries, config)
    assert report.version.name == "v00000002"
    assert report.recall >= 0.97


def test_old_versions_are_removed(store, put):
    config = IndexConfig(versions_to_keep=2)
    for _ in range(4):
        put(*clustered(50), config=config)
    assert store.names() == ["v00000003", "v00000004"]


def test_many_queries_are_sampled_from_all_of_them(put, monkeypatch):
    seen = []
    exact = exact_top_k
    monkeypatch.setattr(
        "retrieval.indexes.sharded_index.exact_top_k", lambda q, *rest: seen.append(q) or exact(q, *rest)
    )
    vectors, _ = clustered(100)
    queries = np.repeat(vectors, 50, axis=0)
    put(vectors, queries)
    assert seen[0].shape == (2048, 32)
    assert np.unique(seen[0], axis=0).shape[0] == 100


def test_queries_of_another_width_are_refused(put):
    with pytest.raises(IndexInputError, match=r"queries have shape \(5, 3\), item vectors have 32"):
        put(clustered(50)[0], np.zeros((5, 3), np.float32))


def test_an_empty_catalogue_is_refused(put):
    with pytest.raises(IndexInputError, match="no items"):
        put(np.zeros((0, 8), np.float32))


def test_a_failed_move_leaves_nothing_behind(store, put, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr("retrieval.versions.publish.shutil.move", refuse)
    with pytest.raises(OSError, match="no space left"):
        put(*clustered(50))
    assert store.names() == []
    assert list(store.root.glob(".building-*")) == []


@pytest.mark.parametrize("name", ["manifest.json", "index.faiss", "items.arrow"])
def test_what_lies_in_the_folder_cannot_take_the_place_of_a_file_of_the_version(put, store, name):
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        put(*clustered(50), extra_files={name: b"x"})
    assert store.names() == []


def test_the_items_of_a_version_can_be_read_back(put):
    vectors, _ = clustered(50)
    ids, stored = read_parts([put(vectors).version.path / "items-0000.arrow"])
    np.testing.assert_array_equal(ids, np.arange(50) * 10)
    np.testing.assert_array_equal(stored, vectors)


def test_overlap_counts_kept_ids_and_ignores_padding():
    previous = np.array([[-1, 5, 6], [7, -1, -1]])  # -1 is an id in the first row, padding in the second
    wanted = np.array([[True, True, True], [True, False, False]])
    ids = np.array([[6, -1, 9], [8, -1, -1]])
    assert overlap_of(ids, previous, wanted) == 2 / 4
    assert overlap_of(ids, previous, np.zeros((2, 3), bool)) == 1.0
