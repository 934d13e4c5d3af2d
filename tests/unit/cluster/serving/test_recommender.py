"""A recommender that follows a run: every answer is from one version, whatever is published meanwhile."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster.queries.query_batch import query_batch
from cluster.queries.served_model import ServedModel
from cluster.queries.version_store import version_store
from cluster.serving.recommender import NothingToServe, Recommender
from retrieval.versions.store import Version, VersionCorrupt, VersionStore
from streaming.catalogue.records import CatalogueUpdate
from tests.support.index_versions import publish_run
from tests.support.unit_runs import encode_users, open_run, small_config, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")

HISTORIES = ([1], [7, 3, 12], [40, 2, 9, 30, 11, 5])
VERSIONS = 15


class _Publishing:
    """A run that trains a step and renames every item before each version, so no two versions have an answer alike."""

    def __init__(self, storage):
        config = replace(small_config(), storage_path=str(storage))
        config.index.versions_to_keep = 2
        self.run = open_run(config)
        self.store = version_store(config)

    def publish(self):
        run = self.run
        train_steps(run, 1)
        known = run.catalogue.snapshot()
        titles = pa.array([f"item {i} of step {run.step}" for i in known.items["item_id"].to_pylist()])
        items = known.items.set_column(known.items.column_names.index("title"), "title", titles)
        run.catalogue.apply(CatalogueUpdate(items, known.users))
        return publish_run(run, run.config).version


@pytest.fixture
def publishing(tmp_path):
    return _Publishing(tmp_path)


def _answers(recommender):
    return [recommender.answer(history=history, k=5) for history in HISTORIES]


def test_every_answer_is_of_one_version_under_a_publisher_that_swaps_as_fast_as_it_can(publishing):
    publishing.publish()
    config = publishing.run.config
    recommender = Recommender(config)
    wanted, given = {recommender.version: _answers(recommender)}, []
    done = threading.Event()

    def ask(n):
        while not done.is_set():
            given.append((n, recommender.answer(history=HISTORIES[n], k=5)))

    with ThreadPoolExecutor(len(HISTORIES)) as pool, recommender.following(every_s=0.001):
        asking = [pool.submit(ask, n) for n in range(len(HISTORIES))]
        try:
            for _ in range(VERSIONS):
                version = publishing.publish()
                wanted[version.name] = _answers(Recommender(config))
            deadline = time.monotonic() + 60
            while recommender.version != version.name and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            done.set()
        for each in asking:
            each.result()
    assert recommender.version == version.name
    assert [answer for n, answer in given if answer != wanted[answer.version][n]] == []
    assert len({answer.version for _, answer in given}) > VERSIONS // 3
    first, last = (wanted[name] for name in (min(wanted), max(wanted)))
    for a, b in zip(first, last, strict=True):
        assert {item.title for item in a.items}.isdisjoint(item.title for item in b.items)
        assert [item.score for item in a.items] != [item.score for item in b.items]


def test_a_request_keeps_the_model_that_it_began_with(publishing, monkeypatch):
    publishing.publish()
    recommender = Recommender(publishing.run.config)
    before = recommender.answer(history=[1], k=5)
    encode = ServedModel.encode

    def encode_and_swap(model, batch):
        vectors = encode(model, batch)
        publishing.publish()
        assert recommender.refresh()
        return vectors

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ServedModel, "encode", encode_and_swap)
        assert recommender.answer(history=[1], k=5) == before
    assert recommender.answer(history=[1], k=5).version == "v00000002"


def test_a_rollback_is_followed_too(publishing):
    publishing.publish()
    recommender = Recommender(publishing.run.config)
    before = _answers(recommender)
    publishing.publish()
    assert recommender.refresh()
    assert not recommender.refresh()
    assert _answers(recommender) != before
    publishing.store.rollback("v00000001")
    assert recommender.refresh()
    assert _answers(recommender) == before


def test_a_version_with_a_damaged_tower_is_refused_once_and_the_one_in_memory_serves(publishing, caplog):
    publishing.publish()
    recommender = Recommender(publishing.run.config)
    before = _answers(recommender)
    damaged = publishing.publish()
    (damaged.path / "towers.safetensors").write_bytes(b"")
    with pytest.raises(VersionCorrupt, match=r"v00000002.*towers\.safetensors"):
        recommender.refresh()
    tried = threading.Semaphore(0)
    look = recommender._models._look

    def counted():
        tried.release()
        return look()

    recommender._models._look = counted
    with recommender.following(every_s=0.001):
        for _ in range(3):
            assert tried.acquire(timeout=60)
        assert _answers(recommender) == before
    assert caplog.text.count("towers.safetensors") == 1
    publishing.publish()
    assert recommender.refresh()


def test_a_closed_recommender_has_stopped_its_thread_and_says_so(publishing):
    publishing.publish()
    with Recommender(publishing.run.config) as recommender:
        recommender.following(every_s=0.001).__enter__()
        assert _answers(recommender)
    assert "following index versions" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(NothingToServe, match="was closed"):
        recommender.answer(history=[1])


def test_items_of_the_history_and_those_excluded_are_not_recommended(publishing):
    publishing.publish()
    with Recommender(publishing.run.config) as recommender:
        history = [1, 2]
        unfiltered = [item.item_id for item in recommender.recommend(history=history, k=5)]
        filtered = [
            item.item_id for item in recommender.recommend(history=history, k=5, exclude=unfiltered[:2])
        ]
    assert set(filtered).isdisjoint(history + unfiltered[:2])
    assert filtered[:3] == unfiltered[2:]


def test_looking_for_a_new_version_reads_the_pointer_alone(publishing, monkeypatch):
    publishing.publish()
    recommender = Recommender(publishing.run.config)
    for name in ("open", "verify", "current", "names"):
        monkeypatch.setattr(VersionStore, name, None)
    assert not any(recommender.refresh() for _ in range(100))


def test_without_a_version_the_error_says_what_to_do(tmp_path):
    with pytest.raises(NothingToServe, match="freshet train"):
        Recommender(replace(small_config(), storage_path=str(tmp_path)))


def test_query_vectors_of_a_version_are_those_of_the_run_that_published_it(publishing):
    version = publishing.publish()
    [model] = ServedModel.load(version, publishing.run.config.stream)
    run, users = publishing.run, np.arange(1, 31)
    batch = query_batch(users, run.users, run.catalogue, run.config.stream.history_length)
    np.testing.assert_array_equal(model.encode(batch), encode_users(run, users))
    assert model.version is version


def test_copies_under_other_names_as_of_an_object_store_answer_alike(publishing, tmp_path, monkeypatch):
    publishing.publish()
    wanted = _answers(Recommender(publishing.run.config))
    stored = Version.file

    def copied(version, name):
        copy = tmp_path / hashlib.sha256(name.encode()).hexdigest()
        copy.write_bytes(stored(version, name).read_bytes())
        return copy

    monkeypatch.setattr(Version, "file", copied)
    assert _answers(Recommender(publishing.run.config)) == wanted
