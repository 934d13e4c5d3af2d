"""Recent events as queries of a candidate and of the live version."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster.collectives import Collectives
from cluster.publishing.quality import RecentEvents, events_to_ask, last_events, quality_of
from cluster.queries.new_events import NewEvents
from cluster.queries.query_batch import query_batch
from cluster.queries.query_side import QuerySide
from retrieval.versions.store import VersionStore
from streaming.batches.selection import select_events
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import ITEM_SCHEMA, TRAINING_BATCH_SCHEMA, USER_SCHEMA
from streaming.histories.history import UserStore
from tests.support.index_versions import publish_run
from tests.support.unit_runs import QUOTA, small_run, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = [1, 2, 3, 4, 5, 3, 70, 80, 90]


class Attributes:
    def user_attributes(self, users):
        return np.stack([users * 10, users * 10 + 1], axis=1)


def users_with(items_of):
    users = UserStore(3, 6)
    items = [item for theirs in items_of.values() for item in theirs]
    users.append(
        np.array(list(items_of)),
        np.zeros(len(items_of), np.int32),
        np.concatenate([[0], np.cumsum([len(theirs) for theirs in items_of.values()])]),
        np.array(items),
        np.arange(len(items)) + 100,
    )
    return users


def test_the_last_event_of_each_user_with_two_is_held_out_of_the_history_and_of_what_was_seen():
    users = users_with({7: [1, 2, 3, 4, 5, 3], 9: [70, 80], 11: [90]})
    batch = last_events(np.array([11, 9, 7, 1234]), users, Attributes(), history_length=3)
    batch.validate(full=True)
    assert batch.schema == TRAINING_BATCH_SCHEMA
    assert batch["user_id"].to_pylist() == [9, 7]
    assert batch["items"].to_pylist() == [[70, 80], [3, 4, 5, 3]]
    assert batch["times_ms"].to_pylist() == [[106, 107], [102, 103, 104, 105]]
    assert batch["context_length"].to_pylist() == [1, 3]
    assert batch["events_before"].to_pylist() == [1, 5]
    assert batch["attributes"].to_pylist() == [[90, 91], [70, 71]]
    assert batch["seen"].to_pylist() == [[70], [1, 2, 3, 4, 5]]


def test_an_item_that_the_user_had_before_is_not_asked_for():
    users = users_with({7: [1, 2, 3, 4, 5, 3], 9: [70, 80]})
    new = NewEvents.of(last_events(np.array([7, 9]), users, Attributes(), history_length=3))
    assert new.event_S.tolist() == [1]
    assert new.target_S.tolist() == [80]
    assert [np.unique(had).tolist() for had in new.had] == [[70]]


def test_no_users_are_no_events():
    empty = last_events(np.zeros(0, np.int64), users_with({7: [1, 2]}), Attributes(), history_length=3)
    assert (empty.num_rows, NewEvents.of(empty).had) == (0, [])


@pytest.fixture(scope="module")
def run():
    trained = small_run()
    train_steps(trained, 6)
    return trained


@pytest.fixture
def side(run):
    return QuerySide(run.model, run.table, run.catalogue, run.config.model)


def everyone(run):
    return np.concatenate([run.users.users_of(p) for p in run.partitions])


def test_a_held_out_event_gives_the_query_of_a_user_who_has_not_done_it_yet(run, side):
    user_Q, width = everyone(run), run.config.stream.history_length
    held_out = last_events(user_Q, run.users, run.catalogue, width)
    user_Q = held_out["user_id"].to_numpy()
    assert user_Q.shape[0] > 10
    items, times, offset_Q1 = run.users.last(user_Q, 100)
    is_last = np.zeros(items.shape[0], bool)
    is_last[offset_Q1[1:] - 1] = True
    earlier = UserStore(run.config.stream.history_length, run.config.stream.seen_length)
    offsets = offset_Q1 - np.arange(user_Q.shape[0] + 1)
    earlier.append(user_Q, run.users.key_hashes(user_Q), offsets, items[~is_last], times[~is_last])
    earlier.log.count_U[earlier.find(user_Q)] = run.users.counts(user_Q) - 1
    expected = side.encode(query_batch(user_Q, earlier, run.catalogue, width))
    np.testing.assert_allclose(side.encode(held_out), expected, rtol=0, atol=1e-6)


def test_sampled_events_of_a_batch_are_asked_with_what_was_there_before_each():
    trained = small_run()
    batch = trained.batcher.next_batch(4 * QUOTA)
    chosen_E = np.random.default_rng(0).random(len(batch["offset"].flatten())) < 0.5
    whole, some = NewEvents.of(batch), NewEvents.of(select_events(batch, chosen_E))
    kept = np.flatnonzero(chosen_E[whole.event_S])
    assert 0 < len(kept) < len(whole.had)
    np.testing.assert_array_equal(some.target_S, whole.target_S[kept])
    for had, expected in zip(some.had, (whole.had[n] for n in kept), strict=True):
        np.testing.assert_array_equal(np.unique(had), np.unique(expected))


def test_the_last_events_are_kept_in_bounds():
    recent, batches = RecentEvents(most=3 * QUOTA), []
    trained = small_run()
    for _ in range(8):
        batches.append(trained.batcher.next_batch(QUOTA))
        recent.add(batches[-1])
    kept = recent.batches()
    assert kept == batches[-len(kept) :]
    lengths = [len(batch["offset"].flatten()) for batch in kept]
    assert sum(lengths[1:]) < 3 * QUOTA <= sum(lengths)
    assert recent.added == 8
    assert recent.since(6) == batches[6:]
    assert recent.since(8) == []
    assert recent.since(0) == kept  # of those that are still there


@pytest.fixture
def published(run, tmp_path):
    """The settings of a run whose version of these very rows is live."""
    run.config.storage_path = str(tmp_path)
    assert publish_run(run, run.config).version is not None
    return replace(run.config, index=replace(run.config.index, min_quality_events=5))


def asked(run, side, config):
    width = run.config.stream.history_length
    events = last_events(everyone(run), run.users, run.catalogue, width)
    found, store = events_to_ask([events], side, config, Collectives()), VersionStore(config.index_location)
    return quality_of(found, side, store, config, Collectives()) if found is not None else None, events


def test_both_versions_are_asked_the_same_events_each_with_its_own_tower(run, side, published):
    quality, events = asked(run, side, published)
    new = NewEvents.of(events)
    np.testing.assert_array_equal(quality.target_Q, new.target_S)
    assert [had.tolist() for had in quality.seen] == [had.tolist() for had in new.had]
    assert quality.top_k == published.progressive.top_k
    np.testing.assert_allclose(quality.query_QD, side.encode(events)[new.event_S], atol=1e-6)
    np.testing.assert_allclose(quality.live_query_QD, quality.query_QD, atol=1e-5)  # of the same rows


def test_a_deleted_item_is_not_asked_for_so_that_its_removal_is_no_loss(run, side, published):
    quality, _ = asked(run, side, published)
    gone = quality.target_Q[0]
    catalogue = Catalogue(run.config.stream)
    record = {"item_id": [gone], "title": [""], "categories": [[]], "deleted": [True]}
    catalogue.apply(CatalogueUpdate(pa.table(record, ITEM_SCHEMA), USER_SCHEMA.empty_table()))
    left, _ = asked(run, replace(side, catalogue=catalogue), published)
    np.testing.assert_array_equal(left.target_Q, quality.target_Q[quality.target_Q != gone])
    assert len(left.seen) == len(left.query_QD) == len(left.live_query_QD) == len(left.target_Q)


def test_without_a_live_version_without_the_gate_and_with_few_events_nothing_is_asked(
    run, side, published, tmp_path
):
    elsewhere = replace(published, storage_path=str(tmp_path / "elsewhere"))
    off = replace(published, index=replace(published.index, max_quality_loss=1.0))
    few = replace(published, index=replace(published.index, min_quality_events=10_000))
    assert [asked(run, side, config)[0] for config in (elsewhere, off, few)] == [None] * 3


def test_a_live_version_that_cannot_be_read_is_named_and_blocks_no_successor(run, side, published, caplog):
    version = VersionStore(published.index_location).current()
    (version.path / "towers.safetensors").write_bytes(b"torn")
    assert asked(run, side, published)[0] is None
    assert "hit rates are not compared with the live version's" in caplog.text
    assert "towers.safetensors" in caplog.text
