"""Deltas of a run of one rank: what a reader that follows them has is what the run has, in the version's own space."""

import logging
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.deltas.publisher import DeltaPublisher
from cluster.observability.delta_figures import DeltaFigures
from cluster.publishing.item_encoding import encode_items
from cluster.publishing.publisher import Publisher
from cluster.queries.changes import read_changes
from cluster.queries.query_side import QuerySide
from cluster.queries.version_store import version_store
from cluster.tables.config import TableConfig
from cluster.training.intake.forgetting import forget_deleted
from model.features import ITEM, USER
from retrieval.deltas.chain import DeltaChain
from retrieval.versions.item_vectors import read_item_vectors
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import (
    ATTRIBUTES,
    CATEGORIES,
    DELETED,
    ITEM_ID,
    ITEM_SCHEMA,
    TITLE,
    USER_ID,
    USER_SCHEMA,
)
from tests.support.checkpointing import save_checkpoint
from tests.support.full_disk import FULL, refusing
from tests.support.unit_runs import CPU, small_run, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")


class Followed:
    """A run with a live version, its deltas, and what a reader of both has."""

    def __init__(self, folder, table=None, **index):
        self.run = small_run(table=table)
        self.run.config.storage_path = str(folder)
        self.run.config.index = replace(self.run.config.index, **{"delta_max_items": 1000, **index})
        self.config = self.run.config
        self.figures = DeltaFigures()
        self.deltas = DeltaPublisher(Collectives(), self.config, CPU, figures=self.figures)
        self.deltas.attach(self.run.table, self.run.catalogue)
        self.publisher = Publisher(Collectives(), self.config, CPU)
        self.checkpoints = CheckpointStore(self.config.checkpoint_location)
        self.store = version_store(self.config)
        train_steps(self.run, 2)
        self.publish()

    def checkpoint(self):
        self.deltas.checkpoint_taken()
        self.saved = save_checkpoint(self.run, self.checkpoints, Collectives())
        self.deltas.checkpoint_committed(self.saved.location)

    def build(self):
        self.deltas.version_begun(self.saved.location)
        self.publisher.start(self.saved, self.run.progressive.recent_queries, self.run.catalogue.item_count)
        self.publisher.wait()
        assert not self.publisher.problem

    def publish(self):
        self.checkpoint()
        self.build()

    def turn(self):
        """One delta, as the worker makes it."""
        self.deltas.start(self.run.step, self.run.events_trained)
        self.deltas.wait()
        if self.deltas.error is not None:
            raise self.deltas.error

    def apply(self, update):
        """Records of the catalogue, as the worker applies them."""
        forget_deleted(self.run, update, Collectives())
        self.run.catalogue.apply(update)
        self.deltas.records_applied(update)

    @property
    def chain(self):
        return DeltaChain(self.store, self.store.current())

    def follow(self):
        """Query side and item vectors (id to vector) after all deltas of the live version."""
        version = self.store.current()
        side = QuerySide.load(version, self.config.stream)
        table = read_item_vectors(self.config.index_location)
        vectors = dict(zip(table["item_id"].to_pylist(), table["vector"].to_numpy(), strict=True))
        for delta in self.chain.after(0):
            side = side.advance(read_changes(delta))
            ids, new_ND = delta.items()
            vectors |= dict(zip(ids.tolist(), new_ND, strict=True))
            for item in delta.deleted().tolist():
                vectors.pop(item, None)
        return side, vectors


@pytest.fixture
def followed(tmp_path):
    return Followed(tmp_path)


def item_record(item, categories, deleted=False):
    return pa.table(
        {ITEM_ID: [item], TITLE: [f"title {item}"], CATEGORIES: [categories], DELETED: [deleted]},
        schema=ITEM_SCHEMA,
    )


def user_record(user, attributes, deleted=False):
    return pa.table({USER_ID: [user], ATTRIBUTES: [attributes], DELETED: [deleted]}, schema=USER_SCHEMA)


def update_of(items=None, users=None):
    return CatalogueUpdate(items or ITEM_SCHEMA.empty_table(), users or USER_SCHEMA.empty_table())


def require_as_run(followed, among=None):
    """The reader's rows are the run's, bit for bit; its item vectors those of the version's towers over these rows."""
    run = followed.run
    side, vectors = followed.follow()
    tables, ids = run.table.keys_of(run.table.rows())
    assert np.array_equal(
        side.rows.rows_of(tables, ids).numpy(), run.table.rows_of(tables, ids).detach().numpy()
    )
    items = run.catalogue.item_ids if among is None else np.array(among)
    assert set(vectors) == set(run.catalogue.item_ids.tolist())
    encoded = encode_items(side.model, side.rows, [(items, run.catalogue.categories(items))])
    wanted = np.concatenate([vector for _, vector in encoded])
    np.testing.assert_allclose(np.stack([vectors[item] for item in items.tolist()]), wanted, atol=1e-5)


def test_a_reader_that_followed_every_delta_has_the_rows_and_vectors_of_the_run(followed):
    followed.turn()  # finds the version
    for _ in range(3):
        train_steps(followed.run, 1)
        followed.turn()
    assert followed.chain.names() == ["d00000001", "d00000002", "d00000003"]
    newest = followed.chain.open("d00000003")
    require_as_run(followed, among=newest.items()[0])
    assert newest.manifest["step"] == followed.run.step
    assert followed.figures.to_json()["number"] == 3


def test_the_first_delta_of_a_version_has_everything_since_its_checkpoint(followed):
    followed.turn()
    train_steps(followed.run, 1)
    followed.turn()
    followed.checkpoint()
    train_steps(followed.run, 2)
    followed.turn()  # still of the old version
    followed.build()
    followed.turn()
    train_steps(followed.run, 1)
    followed.turn()
    assert (followed.figures.to_json()["version"], followed.figures.to_json()["number"]) == ("v00000002", 1)
    require_as_run(followed, among=followed.chain.open("d00000001").items()[0])


def test_an_item_that_appears_in_events_or_as_a_record_is_in_the_next_delta(followed):
    followed.turn()
    followed.run.catalogue.add_items(np.array([901]))
    followed.apply(update_of(items=item_record(902, [3, 4])))
    followed.turn()
    require_as_run(followed)
    side, _ = followed.follow()
    assert side.catalogue.knows(np.array([901, 902])).all()
    assert side.catalogue.titles(np.array([902])) == ["title 902"]


def test_a_deleted_item_and_a_deleted_user_are_gone_from_the_next_delta_on(followed):
    run = followed.run
    followed.turn()
    item, user = int(run.catalogue.item_ids[0]), int(run.users.users_of(0)[0])
    followed.apply(update_of(item_record(item, [], deleted=True), user_record(user, [0], deleted=True)))
    followed.turn()
    side, vectors = followed.follow()
    assert item not in vectors
    assert not side.catalogue.knows(np.array([item])).any()
    assert not side.catalogue.user_attributes(np.array([user])).any()
    require_as_run(followed)
    assert run.table.index.find(np.array([ITEM], np.int16), np.array([item]))[0] < 0


def test_items_beyond_the_budget_wait_for_the_next_deltas(tmp_path):
    followed = Followed(tmp_path, delta_max_items=4, max_delta_share=1.0)
    followed.turn()
    train_steps(followed.run, 1)
    followed.turn()
    followed.run.table.mark_changed(followed.run.table.rows()[:1])
    followed.turn()
    sizes = [delta.items()[0].shape[0] for delta in followed.chain.after(0)]
    assert sizes == [4, 4]
    assert followed.chain.open("d00000001").manifest["waiting"] > 4


def test_nothing_is_written_while_nothing_changes(followed):
    for _ in range(3):
        followed.turn()
    assert followed.chain.names() == []


@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "rename"])
def test_changes_of_a_delta_that_storage_refused_are_in_the_next_one(followed, call):
    followed.turn()
    followed.deltas.unpublished.add(np.array([5], np.int64))
    train_steps(followed.run, 1)
    with refusing(call, FULL, below=followed.config.index_location) as refused:
        followed.turn()
    assert refused
    assert followed.chain.names() == []
    assert "No space left" in followed.figures.problem
    followed.turn()
    assert followed.chain.names() == ["d00000001"]
    assert followed.chain.open("d00000001").manifest["newest_append_ms"] == 5
    assert followed.figures.problem == ""
    require_as_run(followed, among=followed.chain.open("d00000001").items()[0])


def test_a_version_of_an_unknown_state_gets_no_deltas_and_a_full_refresh_is_asked_for_once(followed):
    again = DeltaPublisher(Collectives(), followed.config, CPU)  # as after a resume
    again.attach(followed.run.table, followed.run.catalogue)
    for _ in range(2):
        again.start(1, 1)
        again.wait()
        train_steps(followed.run, 1)
    assert "v00000001 is not of a checkpoint that this process has written" in again.take_refresh()
    assert again.take_refresh() == ""
    assert followed.chain.names() == []


def test_a_new_version_is_looked_at_and_gets_its_first_delta_without_delay_however_dear_deltas_are(followed):
    deltas = followed.deltas
    for _ in range(3):
        deltas._pace.cost(1000.0)
    followed.turn()  # finds the version
    assert deltas.due(time.monotonic())
    train_steps(followed.run, 1)
    followed.turn()
    assert followed.figures.to_json()["number"] == 1
    assert not deltas.due(time.monotonic() + 60)
    assert deltas.due(time.monotonic(), published=1)
    followed.turn()
    assert not deltas.due(time.monotonic(), published=1)


@pytest.mark.parametrize("moment", ["commit", "writing"])
def test_a_delta_that_a_new_version_overtakes_ends_quietly_and_its_changes_are_in_the_first_of_that_version(
    followed, caplog, monkeypatch, moment
):
    followed.turn()
    followed.deltas.unpublished.add(np.array([5], np.int64))
    train_steps(followed.run, 1)
    followed.checkpoint()
    train_steps(followed.run, 1)
    committer = followed.deltas._writer._committer
    if moment == "commit":
        committer._check = followed.build  # the version goes live between the gates and the commit
    else:
        begin = committer._chain.begin
        monkeypatch.setattr(committer._chain, "begin", lambda: (begin(), followed.build())[0])
    followed.turn()
    assert not followed.figures.problem
    said = [record for record in caplog.records if record.name.startswith(("cluster", "retrieval"))]
    assert not [record for record in said if record.levelno >= logging.WARNING]
    assert committer._chain.names() == []
    followed.turn()
    followed.turn()
    assert (followed.figures.to_json()["version"], followed.figures.to_json()["number"]) == ("v00000002", 1)
    newest = followed.chain.open("d00000001")
    assert newest.manifest["newest_append_ms"] == 5
    require_as_run(followed, among=newest.items()[0])


def test_a_version_whose_deltas_were_dropped_behind_the_run_starts_from_its_checkpoint_again(followed):
    followed.turn()
    train_steps(followed.run, 1)
    followed.turn()
    followed.chain.remove()
    for _ in range(3):  # finds that they are gone, looks at the version, commits
        train_steps(followed.run, 1)
        followed.turn()
    assert followed.chain.names() == ["d00000001"]
    require_as_run(followed, among=followed.chain.open("d00000001").items()[0])


def test_a_run_that_was_evicted_commits_no_delta(followed):
    def evicted():
        raise OSError("another group writes here now")

    deltas = DeltaPublisher(Collectives(), followed.config, CPU, evicted, followed.figures)
    deltas.attach(followed.run.table, followed.run.catalogue)
    deltas._moments, deltas._of_checkpoint = {1: deltas._changes.moment()}, {followed.saved.location: 1}
    for _ in range(2):
        deltas.start(1, 1)
        deltas.wait()
        train_steps(followed.run, 1)
    assert "another group writes here now" in followed.figures.problem
    assert followed.chain.names() == []


@pytest.mark.parametrize("table", [ITEM, USER])
def test_a_delta_that_fails_a_gate_is_put_aside_and_explained_and_a_full_refresh_is_asked_for(
    followed, table
):
    run = followed.run
    followed.turn()
    train_steps(run, 1)
    rows = run.table.rows()
    item = rows[run.table.keys_of(rows)[0] == table][:1]
    run.table.values_CD[item[0]] = float("nan")
    run.table.mark_changed(item)
    followed.turn()
    assert followed.chain.names() == []
    [(name, reason)] = followed.chain.refused().items()
    assert "finite" in reason
    assert followed.deltas.take_refresh() == f"{name} of v00000001 was refused: {reason}"
    assert followed.figures.problem == f"{name} of v00000001 was refused: {reason}"
    run.table.mark_changed(item)
    followed.turn()
    assert (followed.chain.names(), list(followed.chain.refused())) == ([], [name]), (
        "the version gets no more deltas"
    )


@pytest.mark.parametrize(("most_items", "limit"), [(1, "share of the deltas is"), (1000, "")])
def test_deltas_that_pass_a_limit_say_so_unless_they_are_few(tmp_path, most_items, limit):
    followed = Followed(tmp_path, delta_max_items=most_items)
    followed.turn()
    followed.run.catalogue.add_items(np.array([901, 902]))
    for _ in range(2):
        followed.turn()
        followed.run.table.mark_changed(followed.run.table.rows()[:1])
    assert followed.deltas.limit.startswith(limit)
    assert bool(followed.deltas.limit) == bool(limit)


def test_items_that_wait_for_a_row_get_into_deltas_with_the_row_that_they_share(tmp_path):
    followed = Followed(tmp_path, TableConfig(admit_after=3))
    for _ in range(3):
        train_steps(followed.run, 1)
        followed.turn()
    run = followed.run
    assert len(run.table.waiting)
    assert followed.chain.after(0)
    side, _ = followed.follow()
    # Vectors of items whose shared row moved wait for the next refresh; the rows are those of the run.
    items = run.catalogue.item_ids
    tables = np.full(items.shape[0], ITEM, np.int16)
    assert side.rows.rows_of(tables, items).equal(run.table.rows_of(tables, items))
