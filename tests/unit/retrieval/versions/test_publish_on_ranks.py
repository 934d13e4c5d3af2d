"""A version that several ranks build together is the one that one rank builds, or it is none."""

import shutil
import threading
from dataclasses import replace

import faiss
import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes import coarse, sharded_index
from retrieval.indexes.ivf import IvfIndex
from retrieval.ranks import OtherRankError, OtherRankStorageError
from retrieval.versions import attempt
from retrieval.versions import publish as publishing
from retrieval.versions.gate import Quality
from retrieval.versions.publish import publish
from retrieval.versions.searcher import LoadedVersion, Searcher
from retrieval.versions.store import VersionCorrupt, VersionStore
from tests.support.thread_ranks import on_threads, outcomes_on_threads
from tests.unit.retrieval.conftest import clustered, unit

VECTORS, QUERIES = clustered(2500)
IDS = np.random.default_rng(3).permutation(2500) * 7 - 900
CONFIG = IndexConfig(
    device="cpu", min_overlap=0.1, sample_per_list=20, min_quality_events=50, build_iterations=4
)


def quality():
    rng = np.random.default_rng(4)
    targets = rng.integers(0, 2500, 80)
    queries = unit(VECTORS[targets] + 0.2 * rng.normal(size=(80, 32)))
    seen = [IDS[rng.integers(0, 2500, n % 9)] for n in range(80)]
    return Quality(queries, queries, IDS[targets], seen, 10)


def slices(rank, world, vectors):
    """This rank's items; with three ranks the last one has none."""
    owner = np.abs(IDS) % min(world, 2)
    ids, mine = IDS[owner == rank], vectors[owner == rank]
    for start in range(0, ids.shape[0], 400):
        yield ids[start : start + 400], mine[start : start + 400]


def build(ranks, store, folder, vectors=VECTORS, items=None, config=CONFIG, **arguments):
    return publish(
        store,
        folder,
        items or slices(ranks.rank, ranks.world, vectors),
        QUERIES if ranks.rank == 0 else QUERIES[:0],
        config,
        ranks=ranks,
        metadata={"step": 3},
        seed=5,
        **arguments,
    )


def attempts(tmp_path):
    """A fresh folder for each attempt."""
    number = 0
    while True:
        folder = tmp_path / f"attempt-{number}"
        folder.mkdir()
        yield folder
        number += 1


def items_by_list(loaded):
    lists = loaded.index._index.invlists
    rows = [
        faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(loaded.index.nlist)
    ]
    return [sorted(loaded.item_ids[of_list].tolist()) for of_list in rows]


def test_one_two_and_three_ranks_build_the_same_version_twice_in_a_row(tmp_path):
    drifted = unit(VECTORS + 0.02 * np.random.default_rng(6).normal(size=VECTORS.shape))
    seen = []
    for world in (1, 2, 3):
        store, folders = VersionStore(tmp_path / f"index-{world}"), attempts(tmp_path / f"on-{world}")
        (tmp_path / f"on-{world}").mkdir()
        for vectors in (VECTORS, drifted):
            folder = next(folders)
            (folder / "tower").write_bytes(b"weights")
            work = lambda ranks: build(ranks, store, folder, vectors, quality=quality)  # noqa: B023, E731
            reports = on_threads(world, work)
            assert len({report.version.name for report in reports}) == 1
            assert all(replace(r, seconds={}) == replace(reports[0], seconds={}) for r in reports)
            version = store.verify(reports[0].version.name)
            assert len(version.files("index-")) == len(version.files("items-")) == world
            loaded = LoadedVersion.load(version)
            found, scores = loaded.search(QUERIES, 10)
            report = reports[0]
            checks = [(check.name, round(check.value, 12)) for check in report.gate.checks]
            seen.append(
                (report.nlist, report.nprobe, report.recall, report.scanned, checks, items_by_list(loaded))
            )
            seen[-1] += (loaded.index.centroids().tolist(), found.tolist(), scores.tolist())
    assert [name for name, _ in seen[1][4]] == ["recall", "coverage", "imbalance", "overlap", "quality"]
    assert seen[0] == seen[2] == seen[4]
    assert seen[1] == seen[3] == seen[5]
    assert seen[0][6] != seen[1][6]


class OnOneRank:
    """Raises where it is called on the thread of one rank."""

    def __init__(self, error):
        self.error, self.thread = error, 0

    def __call__(self):
        if threading.get_ident() == self.thread:
            raise self.error

    def before(self, original):
        def called(*given, **named):
            self()
            return original(*given, **named)

        return called


STAGES = {
    "items": (None, "", 1),
    "sample": (attempt.AttemptFiles, "write_sample", 1),
    "train": (publishing, "train_centroids", 0),
    "add": (attempt.AttemptFiles, "build_shard", 1),
    "exact": (sharded_index, "exact_top_k", 1),
    "tune": (IvfIndex, "search", 1),
    "gate": (IvfIndex, "scanned", 1),
    "shards": (IvfIndex, "save", 1),
    "check": (None, "", 0),
    "move": (shutil, "move", 0),
    "commit": (VersionStore, "commit", 0),
    "promote": (VersionStore, "promote", 0),
}


@pytest.mark.parametrize("error", [OSError("no space left"), RuntimeError("a bug")], ids=["storage", "bug"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_of_one_rank_is_raised_on_all_and_the_live_version_stays(
    tmp_path, monkeypatch, stage, error
):
    store, folders = VersionStore(tmp_path / "index"), attempts(tmp_path)
    first = on_threads(1, lambda ranks: build(ranks, store, next(folders)))[0].version
    owner, name, rank = STAGES[stage]
    fail, folder = OnOneRank(error), next(folders)
    if owner is not None:
        monkeypatch.setattr(owner, name, fail.before(getattr(owner, name)))

    def work(ranks):
        if ranks.rank == rank:
            fail.thread = threading.get_ident()
        items = slices(ranks.rank, ranks.world, VECTORS)
        if stage == "items":
            items = (fail() or own for own in items)
        check = fail if stage == "check" else lambda: None
        return build(ranks, store, folder, items=items, before_commit=check)

    raised = outcomes_on_threads(2, work)
    assert raised[rank] is error
    assert type(raised[1 - rank]) is (OtherRankStorageError if isinstance(error, OSError) else OtherRankError)
    assert str(raised[1 - rank]) == f"rank {rank}: {error}"
    monkeypatch.undo()
    assert store.current() == first
    store.verify(first.name)
    assert not list(store.root.glob(".building-*"))
    again = next(folders)
    reports = on_threads(2, lambda ranks: build(ranks, store, again))
    assert store.current() == reports[0].version == reports[1].version


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"])
def test_shards_of_three_ranks_answer_as_the_one_of_one_rank(tmp_path, kind):
    found = []
    for world in (1, 3):
        store, config = VersionStore(tmp_path / f"index-{world}"), replace(CONFIG, kind=kind)
        for attempt_number in range(
            2
        ):  # the second one compares itself with the first, and starts from its lists
            folder = tmp_path / f"on-{world}-{attempt_number}"
            folder.mkdir()
            on_threads(world, lambda ranks: build(ranks, store, folder, config=config))  # noqa: B023
        overlap = store.current().manifest["gate"][-1]
        assert overlap["name"] == "overlap"
        assert overlap["value"] > 0.9
        with Searcher(store.root) as searcher:
            seen = [IDS[n : n + n % 5] for n in range(QUERIES.shape[0])]
            found.append([searcher.search(QUERIES, 10), searcher.search(QUERIES, 10, seen)])
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one[1], three[1])
        np.testing.assert_array_equal(one[0], three[0])


def test_a_shard_that_is_not_listed_is_missed(tmp_path):
    store, folder = VersionStore(tmp_path / "index"), tmp_path / "attempt"
    folder.mkdir()
    on_threads(2, lambda ranks: build(ranks, store, folder))
    version = store.current()
    assert version is not None
    fewer = replace(
        version,
        manifest=version.manifest
        | {"files": [entry for entry in version.entries if entry["name"] != "index-0001.faiss"]},
    )
    with pytest.raises(VersionCorrupt, match=r"does not list index-0001\.faiss"):
        LoadedVersion.load(fewer)


def test_lists_from_the_live_version_that_fail_a_gate_are_trained_from_scratch(tmp_path, monkeypatch):
    store, folders = VersionStore(tmp_path / "index"), attempts(tmp_path)
    on_threads(1, lambda ranks: build(ranks, store, next(folders)))
    starts, train = [], coarse.train_centroids

    def train_badly(sample, lists, config, *, seed, warm_start_LD):
        starts.append(warm_start_LD is not None)
        return train(sample, lists, config, seed=seed, warm_start_LD=None) * (0.0 if starts[-1] else 1.0)

    monkeypatch.setattr(publishing, "train_centroids", train_badly)
    config = replace(CONFIG, max_imbalance=3.0, min_overlap=0.0)
    [report] = on_threads(1, lambda ranks: build(ranks, store, next(folders), config=config))
    assert starts == [True, False]
    assert report.version == store.current()
    assert report.version.name == "v00000002"
