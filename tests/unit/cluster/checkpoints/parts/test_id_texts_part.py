"""Texts of ids in checkpoints and versions: written as a base and as changes, restored by the ranks that need them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster.checkpoints.parts.id_texts import ITEMS, read_texts
from cluster.collectives import Collectives
from cluster.queries.served_model import ServedModel
from cluster.queries.version_store import version_store
from cluster.serving.recommender import Recommender, UnknownItems, UnknownUser
from cluster.training.intake.text_agreement import IdClash, agree_on_texts
from cluster.training.state.worker_state import checkpointer_of
from streaming.events.ids import ids_of_texts
from streaming.histories.id_texts import IdTexts, KnownTexts
from tests.support.hash_clash import two_texts_with_one_hash
from tests.support.index_versions import publish_run
from tests.support.unit_runs import open_run, small_config, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST, SECOND = two_texts_with_one_hash("item")


def _note(texts, *names):
    ids = ids_of_texts(pa.array(names, pa.string()))
    assert texts.clashes(ids, np.arange(len(names)), pa.array(names, pa.string())) is None
    return ids


def _saved(checkpoint, prefix):
    return read_texts(checkpoint.files(prefix), IdTexts())


def test_a_run_without_texts_writes_no_file(store):
    run = open_run(small_config())
    train_steps(run, 1)
    checkpoint = checkpointer_of(run, store, Collectives()).finish(run.step)
    assert checkpoint.files("id-texts-") == []


def test_texts_are_in_full_checkpoints_and_deltas_and_restored_with_their_ids(store):
    run = open_run(small_config())
    train_steps(run, 1)
    known = run.users.users()[:1]
    items = _note(run.texts.items, "boots", "hat")
    run.catalogue.add_items(items)
    checkpointer = checkpointer_of(run, store, Collectives())
    full = checkpointer.finish(run.step)
    assert _saved(full, ITEMS).texts(items) == ["boots", "hat"]
    later = _note(run.texts.items, "scarf")
    run.catalogue.add_items(later)
    _note(run.texts.users, "never in an event")
    train_steps(run, 1)
    delta = checkpointer.finish(run.step)
    checkpointer.close()
    assert [link.name for link in delta.links] == [full.name, delta.name]
    again = open_run(small_config(), delta)
    assert again.texts.items.texts(np.concatenate([items, later])) == ["boots", "hat", "scarf"]
    assert len(again.texts.users) == 0  # no user of this run
    assert again.texts.users.as_given(known) == known.tolist()
    assert again.texts.items.changes().num_rows == 0


def test_a_version_has_the_texts_of_its_living_items_and_answers_with_them(tmp_path):
    config = replace(small_config(), storage_path=str(tmp_path))
    run = open_run(config)
    train_steps(run, 2)
    fresh = _note(run.texts.items, FIRST, "gone")
    run.catalogue.add_items(fresh[:1])
    publish_run(run, config)
    (model,) = ServedModel.load(version_store(config).open(version_store(config).live_name()), config.stream)
    assert model.catalogue.item_texts(fresh) == [FIRST, None]
    with Recommender(config) as recommender:
        found = [one.item_id for one in recommender.recommend(history=[1, 2], k=60)]
        assert FIRST in found
        assert all(type(item) is int for item in found if item != FIRST)
        assert FIRST not in [one.item_id for one in recommender.recommend(history=[1], exclude=[FIRST], k=60)]
        # Another text of the same hash is another item: it excludes nothing, and nothing is known of it.
        assert FIRST in [one.item_id for one in recommender.recommend(history=[1], exclude=[SECOND], k=60)]
        with pytest.raises(UnknownItems, match="none of the items"):
            recommender.recommend(history=[SECOND, "never"])
        with pytest.raises(UnknownUser):
            recommender.recommend(user_id="nobody")


class _TwoRanks:
    """Two ranks in one process, of which the other one always sends the same."""

    world, rank = 2, 0

    def __init__(self, other):
        self._other = other

    def gather_objects(self, mine):
        theirs = self._other if isinstance(mine, dict) else ""
        return [mine, theirs]


def test_ranks_that_read_two_texts_of_one_hash_stop():
    mine, other = KnownTexts(), IdTexts()
    _note(mine.items, FIRST)
    _note(other, SECOND)
    sink = pa.BufferOutputStream()
    table = other.unchecked()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sent = {"item": bytes(sink.getvalue())}
    with pytest.raises(IdClash, match="have the same 64-bit hash") as raised:
        agree_on_texts(mine, _TwoRanks(sent), "clicks")
    assert f"the item ids {FIRST!r} and {SECOND!r}" in str(raised.value)
    assert "'clicks'" in str(raised.value)
    agree_on_texts(mine, _TwoRanks({}), "clicks")
