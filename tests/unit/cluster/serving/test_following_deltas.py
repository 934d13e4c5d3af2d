"""A recommender follows deltas: new items appear, deleted items and users are gone, and nothing is loaded again."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.queries.query_batch import history_batch
from cluster.queries.query_side import QuerySide
from cluster.queries.served_model import ServedModel
from cluster.queries.version_store import version_store
from cluster.serving.recommender import Recommender, UnknownUser
from model.features import ITEM
from tests.support.deltas import changes_of, commit_delta
from tests.support.index_versions import EXHAUSTIVE, publish_run
from tests.support.unit_runs import open_run, small_config, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, NEW, DELETED = 8, 777, 3
HISTORY = [7, 12, 40]


@pytest.fixture
def config(tmp_path):
    return replace(small_config(), storage_path=str(tmp_path), index=EXHAUSTIVE)


@pytest.fixture
def published(config):
    """A run with a version, its store, and the version."""
    run = open_run(config)
    train_steps(run, 2)
    return run, version_store(config), publish_run(run, config).version


def _query(recommender):
    items = np.array(HISTORY)
    batch = history_batch(
        np.array([-1]), np.array([3]), items, np.zeros(3, np.int64), np.array([3]), np.zeros((1, 1), np.int64)
    )
    return recommender.model.encode(batch)


def test_a_new_item_is_recommended_with_its_title_and_a_deleted_one_is_gone(config, published):
    _, store, version = published
    with Recommender(config) as recommender:
        before = recommender.answer(history=HISTORY, k=50)
        assert (before.version, before.delta) == (version.name, 0)
        assert DELETED in {item.item_id for item in before.items}
        vectors = 2 * _query(recommender)
        commit_delta(store, version, changes_of(DIM, items=[(NEW, "a new film")]), [NEW], vectors)
        commit_delta(store, version, changes_of(DIM, items=[(DELETED, None)]), deleted=[DELETED])
        assert recommender.answer(history=HISTORY, k=50) == before
        assert recommender.refresh()
        after = recommender.answer(history=HISTORY, k=50)
        assert not recommender.refresh()
    assert (after.version, after.delta) == (version.name, 2)
    assert (after.items[0].item_id, after.items[0].title) == (NEW, "a new film")
    others = [item for item in before.items if item.item_id != DELETED]
    assert after.items[1:] == others


def test_a_deleted_user_is_unknown_from_the_next_delta_on_and_others_are_not(config, published):
    _, store, version = published
    with Recommender(config) as recommender:
        user, other = recommender.user_ids()[:2]
        wanted = recommender.answer(other, k=5).items
        assert recommender.answer(user, k=5).items
        commit_delta(store, version, changes_of(DIM, users=[user]))
        recommender.refresh()
        with pytest.raises(UnknownUser, match=f"user {user} has no events"):
            recommender.answer(user, k=5)
        assert recommender.history_titles(user) == []
        assert user not in recommender.user_ids()
        assert recommender.answer(other, k=5).items == wanted


def test_a_deleted_item_is_gone_from_the_histories_too(config, published):
    _, store, version = published
    with Recommender(config) as recommender:
        user = int(recommender.user_ids()[0])
        past = recommender._past(recommender.model, np.array([user])).tolist()
        titles = recommender.history_titles(user, len(past))
        gone = past[-1]
        commit_delta(store, version, changes_of(DIM, items=[(gone, None)]), deleted=[gone])
        recommender.refresh()
        after = recommender.history_titles(user, len(past))
        assert after == [title for title in titles if title != f"item {gone}"] != titles


def test_changed_rows_move_the_query_and_the_request_in_progress_keeps_its_model(config, published):
    _, store, version = published
    with Recommender(config) as recommender:
        before, model = _query(recommender), recommender.model
        values = np.full((len(HISTORY), DIM), 0.5, np.float32)
        rows = np.full(len(HISTORY), ITEM, np.int16), np.array(HISTORY), values
        commit_delta(store, version, changes_of(DIM, rows=rows))
        recommender.refresh()
        assert not np.array_equal(_query(recommender), before)
        assert torch.equal(recommender.model.queries.rows.rows_of(*rows[:2])[1:], torch.from_numpy(values))
        assert recommender.model.queries.model is model.queries.model
        assert model.delta == 0
        assert recommender.model.delta == 1


def test_a_delta_never_loads_the_version_again(config, published, monkeypatch):
    _, store, version = published
    with Recommender(config) as recommender:
        monkeypatch.setattr(QuerySide, "load", None)
        monkeypatch.setattr(ServedModel, "load", None)
        monkeypatch.setattr(type(store), "verify", None)
        for number in range(1, 4):
            commit_delta(store, version, changes_of(DIM, items=[(NEW, f"title {number}")]))
            assert recommender.refresh()
            assert recommender.model.catalogue.titles(np.array([NEW])) == [f"title {number}"]


def test_a_damaged_delta_is_named_once_and_the_state_before_it_serves(config, published, caplog):
    _, store, version = published
    with Recommender(config) as recommender:
        commit_delta(store, version, changes_of(DIM, items=[(NEW, "whole")]))
        recommender.refresh()
        damaged = commit_delta(store, version, changes_of(DIM, items=[(NEW, "damaged")]))
        path = damaged.file("changes-0000.arrow")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert not recommender.refresh()
        tried, look = threading.Semaphore(0), recommender._models._look

        def counted():
            tried.release()
            return look()

        recommender._models._look = counted
        with recommender.following(every_s=0.001):
            for _ in range(3):
                assert tried.acquire(timeout=60)
        assert recommender.model.delta == 1
        assert recommender.model.catalogue.titles(np.array([NEW])) == ["whole"]
    assert caplog.text.count("delta d00000002 of index version v00000001 is damaged: changes-0000.arrow") == 1


def test_changes_of_another_model_are_a_damaged_delta(config, published, caplog):
    _, store, version = published
    with Recommender(config) as recommender:
        commit_delta(
            store,
            version,
            changes_of(9, rows=(np.zeros(1, np.int16), np.ones(1, np.int64), np.zeros((1, 9), np.float32))),
        )
        assert not recommender.refresh()
        assert recommender.model.delta == 0
    assert "stays at delta 0: delta d00000001" in caplog.text
    assert "dimension 9, but the version's have 8" in caplog.text


def test_a_recommender_that_begins_later_is_where_the_others_are(config, published):
    _, store, version = published
    commit_delta(
        store, version, changes_of(DIM, items=[(NEW, "a new film")]), [NEW], np.full((1, DIM), 9, np.float32)
    )
    with Recommender(config) as recommender:
        assert recommender.model.delta == 1
        assert NEW in {item.item_id for item in recommender.recommend(history=HISTORY, k=51)}
