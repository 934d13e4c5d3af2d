"""Each gate, tripped through `publish`: the version is kept aside, named and explained, and is not served."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k
from retrieval.versions.gate import Quality
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionRefused
from tests.support.thread_ranks import on_threads
from tests.unit.retrieval.conftest import clustered, unit

VECTORS, QUERIES = clustered(1200)
SHUFFLED = VECTORS[np.random.default_rng(0).permutation(1200)]
HARD = unit(np.random.default_rng(0).normal(size=(2000, 64)))


def with_one(rows, value):
    changed = rows.copy()
    changed[3] = value
    return changed


def in_one_place():
    vectors = clustered(2000)[0]
    vectors[:1900] = unit(vectors[:1] + 0.001 * np.random.default_rng(0).normal(size=(1900, 32)))
    return vectors


def quality(query_QD):
    """The targets are what the live version finds first for these queries, so its hit rate is 1."""
    targets = 10 * exact_top_k(QUERIES, VECTORS, 1)[:, 0]
    return Quality(query_QD, QUERIES, targets, [np.zeros(0, np.int64)] * 300, top_k=10)


@dataclass
class Bad:
    """A candidate that one gate refuses, beside the live version of VECTORS."""

    gate: str
    vectors: np.ndarray
    queries: np.ndarray = field(default_factory=lambda: QUERIES)
    config: IndexConfig = field(default_factory=IndexConfig)
    advice: str = ""
    more: dict[str, Any] = field(default_factory=dict)


CROWDED = IndexConfig(nlist=60, nprobe=1, max_imbalance=1.2, min_recall=0.0)
CANDIDATES = {
    "finite items": Bad("finite", with_one(VECTORS, np.nan), advice="diverged"),
    "finite queries": Bad("finite", VECTORS, with_one(QUERIES, np.inf), advice="diverged"),
    "nonzero items": Bad("nonzero", with_one(VECTORS, 0), advice="collapsed"),
    "nonzero queries": Bad("nonzero", VECTORS, with_one(QUERIES, 0), advice="collapsed"),
    "recall": Bad("recall", HARD, HARD[:0], IndexConfig(max_probe_fraction=0.02), "index.min_recall"),
    "coverage": Bad("coverage", VECTORS, advice="index.min_coverage", more={"known_items": 1300}),
    "imbalance": Bad("imbalance", in_one_place(), in_one_place()[:100], CROWDED, "index.max_imbalance"),
    "overlap": Bad("overlap", SHUFFLED, config=IndexConfig(min_overlap=0.5), advice="index.min_overlap"),
    "quality": Bad(
        "quality", VECTORS, advice="index.max_quality_loss", more={"quality": quality(QUERIES[::-1].copy())}
    ),
}


@pytest.mark.parametrize("name", CANDIDATES)
def test_each_gate_refuses_a_version_which_is_kept_explained_and_not_served(store, put, caplog, name):
    bad = CANDIDATES[name]
    live = put(VECTORS, QUERIES, step=1).version
    searcher = Searcher(store.root)
    report = put(bad.vectors, bad.queries, bad.config, step=2, **bad.more)
    assert report.version is None
    assert report.refused.name == "v00000002"
    [failed] = [check for check in report.gate.checks if not check.passed]
    assert failed.name == bad.gate
    aside = store.verify("v00000002")
    assert aside.manifest["step"] == 2
    [told] = [check for check in aside.manifest["gate"] if not check["passed"]]
    assert (told["name"], told["value"], told["bound"]) == (bad.gate, failed.value, failed.bound)
    assert aside.refused == report.gate.why_not()
    assert f"{bad.gate} is {failed.value:.4g}" in aside.refused
    assert bad.advice in aside.refused
    assert aside.refused in caplog.text
    assert not searcher.refresh()
    assert store.current() == searcher.version == live
    for change in (store.promote, store.rollback):
        with pytest.raises(VersionRefused, match=bad.gate):
            change("v00000002")


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_refused_version_is_served_on_demand_if_it_has_an_index(store, put, name):
    bad = CANDIDATES[name]
    put(VECTORS, QUERIES)
    aside = put(bad.vectors, bad.queries, bad.config, **bad.more).refused
    assert aside.has_index == (bad.gate not in ("finite", "nonzero"))
    if not aside.has_index:
        with pytest.raises(VersionRefused, match="it has no index"):
            store.rollback(aside.name, refused=True)
        return
    store.rollback(aside.name, refused=True)
    assert (Searcher(store.root).search(bad.vectors[:5], 1)[0] >= 0).all()


def test_the_first_items_that_are_not_finite_are_named(put, caplog):
    put(with_one(VECTORS, np.nan), QUERIES)
    assert "first of items [30]" in caplog.text


def test_few_refused_versions_are_kept_beside_those_that_passed(store, put):
    config = IndexConfig(versions_to_keep=2, refused_versions_to_keep=1, kind="ivf_flat")
    few, queries = clustered(50)
    for n in range(8):
        put(few, queries, config, known_items=50 if n % 3 else 60)
    assert store.names() == ["v00000006", "v00000007", "v00000008"]
    assert [bool(store.open(name).refused) for name in store.names()] == [False, True, False]
    assert store.live_name() == "v00000008"


def test_the_candidate_may_lose_what_the_setting_allows_and_users_seen_items_are_not_found(store, put):
    put(VECTORS, QUERIES)
    same = quality(QUERIES)
    [check] = [c for c in put(VECTORS, QUERIES, quality=same).gate.checks if c.name == "quality"]
    assert check.passed
    assert check.value > 0.99
    assert f"the live version's is {check.value:.4g} on 300 events" in check.note
    seen = replace(same, seen=[np.array([target]) for target in same.target_Q.tolist()])
    [check] = [c for c in put(VECTORS, QUERIES, quality=seen).gate.checks if c.name == "quality"]
    assert (check.value, check.passed) == (0.0, True)


def test_without_a_live_version_there_is_nothing_to_compare_with(put):
    report = put(VECTORS, QUERIES, quality=quality(QUERIES[::-1].copy()))
    assert report.version is not None
    assert "quality" not in [check.name for check in report.gate.checks]


def test_the_hit_rates_of_several_ranks_are_those_of_one(store, put, tmp_path):
    put(VECTORS, QUERIES)
    asked = quality(QUERIES[::-1].copy())
    alone = put(VECTORS, QUERIES, quality=asked)
    folder = tmp_path / "attempt"
    folder.mkdir()

    def build(ranks):
        mine = slice(ranks.rank, None, ranks.world)
        items = iter([(10 * np.arange(1200)[mine], VECTORS[mine])])
        return publish(
            store,
            folder,
            items,
            QUERIES,
            IndexConfig(),
            ranks=ranks,
            metadata={},
            seed=1,
            quality=lambda: asked,
        )

    reports = on_threads(3, build)
    figures = [json.dumps({**report.figures(), "seconds": {}}) for report in (alone, *reports)]
    assert len(set(figures)) == 1
    assert {report.refused.name for report in reports} == {"v00000003"}
