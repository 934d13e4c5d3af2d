"""Texts of ids in checkpoints and versions: written as a base and as changes, restored by the ranks that need them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pytest

from cluster.checkpoints.parts.id_texts import ITEMS, read_texts
from cluster.collectives import Collectives
from cluster.queries.served_model import ServedModel
from cluster.queries.version_store import version_store
from cluster.serving.recommender import Recommender, UnknownItems, UnknownUser
from cluster.training.intake.text_agreement import OWNERS, IdClash, agree_on_texts, keep_owners
from cluster.training.state.worker_state import checkpointer_of
from streaming.codecs.codec import decode_messages
from streaming.events.ids import ids_of_texts
from streaming.events.validation import Place
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
    """Rank 0 of two in one process, of which the other one says what a function makes of what this one sends."""

    world, rank = 2, 0

    def __init__(self, *others):
        self._others = list(others)

    def gather_objects(self, mine):
        return [mine, self._others.pop(0) if self._others else mine]


def _sent(texts):
    """What a rank sends about the items that are new to it."""
    sink = pa.BufferOutputStream()
    table = texts.items.unchecked()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"items": bytes(sink.getvalue())}


def _knowing(text):
    texts = KnownTexts()
    _note(texts.items, text)
    return texts


@pytest.mark.parametrize("mine", [FIRST, SECOND])
@pytest.mark.parametrize("seen_before", [False, True])
def test_of_two_texts_of_one_hash_on_two_ranks_one_is_refused_after_a_restart(mine, seen_before, tmp_path):
    other = SECOND if mine == FIRST else FIRST
    texts = _knowing(mine)
    if seen_before:
        agree_on_texts(texts, _TwoRanks({}, []), "clicks", tmp_path)
    chosen = mine if seen_before else min(mine, other)
    refused = other if chosen == mine else mine
    identifier = int(ids_of_texts(pa.array([mine]))[0])
    # What the other rank finds: nothing if this one's text is not new.
    found = [] if seen_before else [("items", identifier, True, other, mine)]
    with pytest.raises(IdClash, match=r"have the same 64-bit hash.*'clicks'") as raised:
        agree_on_texts(texts, _TwoRanks(_sent(_knowing(other)), found), "clicks", tmp_path)
    assert f"events of {refused!r} are dead letters" in str(raised.value)

    for _ in range(2):  # every rank, in any order of events
        again = KnownTexts()
        keep_owners(again, tmp_path)
        events = [
            SimpleNamespace(
                offset=n,
                timestamp=5,
                value=orjson.dumps({"user_id": 1, "item_id": text, "timestamp_ms": 5}),
                headers=None,
            )
            for n, text in enumerate((refused, chosen))
        ]
        decoded = decode_messages(events, Place("t", 0, 1, texts=again))
        assert decoded.rows["offset"].to_pylist() == [1]
        assert [(letter.offset, letter.code) for letter in decoded.dead] == [(0, "id_clash")]
        assert again.items.changes()["text"].to_pylist() == [chosen]  # saved with the next checkpoint


def test_choices_add_up_and_without_any_nothing_is_known(tmp_path):
    texts = KnownTexts()
    keep_owners(texts, tmp_path)
    assert len(texts.items) == 0
    pairs = [two_texts_with_one_hash(prefix) for prefix in ("one", "two")]
    for mine, other in pairs:
        with pytest.raises(IdClash):
            agree_on_texts(_knowing(mine), _TwoRanks(_sent(_knowing(other)), []), "clicks", tmp_path)
    assert (tmp_path / OWNERS).stat().st_mode & 0o777 == 0o600
    keep_owners(texts, tmp_path)
    assert texts.items.texts(ids_of_texts(pa.array([pair[0] for pair in pairs]))) == [min(p) for p in pairs]
