"""A chain of checkpoints holds the catalogue of its last step, whatever changed between and during them."""

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.catalogue import ITEMS, USERS, CataloguePart, merged_catalogue, read_catalogue
from cluster.checkpoints.writing import Checkpointer, FullPolicy
from cluster.collectives import Collectives
from cluster.queries.saved_catalogue import SavedCatalogue
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import ITEM_ID, ITEM_SCHEMA, USER_SCHEMA

CONFIG = StreamConfig(max_categories=2, user_attributes=["age"])
STEPS = st.lists(st.sampled_from(["records", "events", "checkpoint", "checkpoint", "resume"]), max_size=14)


def _update(rng):
    """Records of a few items and users, a quarter of them tombstones."""
    items, users = (rng.integers(1, 40, rng.integers(0, 6)) for _ in range(2))
    gone, left = rng.random(len(items)) < 0.25, rng.random(len(users)) < 0.25
    item_columns = [
        items,
        [None if d else f"title {rng.integers(9)}" for d in gone],
        [[] if d else rng.integers(1, 9, rng.integers(0, 3)).tolist() for d in gone],
        gone,
    ]
    user_columns = [users, [[0 if d else int(rng.integers(1, 9))] for d in left], left]
    return CatalogueUpdate(
        pa.table([pa.array(c, f.type) for c, f in zip(item_columns, ITEM_SCHEMA, strict=True)], ITEM_SCHEMA),
        pa.table([pa.array(c, f.type) for c, f in zip(user_columns, USER_SCHEMA, strict=True)], USER_SCHEMA),
    )


def _change(catalogue, rng):
    if rng.random() < 0.5:
        catalogue.apply(_update(rng))
    else:
        catalogue.add_items(rng.integers(1, 60, rng.integers(0, 4)))


class _Run:
    """A catalogue and the checkpoints of nothing else."""

    def __init__(self, folder, rng, every, parent=None):
        self.rng, self.every = rng, every
        self.store, self.catalogue = CheckpointStore(folder), Catalogue(CONFIG)
        self.parent = self.expected = parent
        if parent is not None:
            CataloguePart(self.catalogue, writes=False).restore(Saved(parent))
        self.checkpointer = Checkpointer(
            self.store,
            Collectives(),
            [CataloguePart(self.catalogue)],
            parent=parent,
            policy=FullPolicy(every=every, share=1e9),
            at_snapshot=lambda: setattr(self, "expected", self.catalogue.snapshot()),
        )

    def checkpoint(self):
        """Records may come while it is copied and written."""
        self.checkpointer.begin(1)
        while not self.checkpointer.idle:
            self.parent = (self.checkpointer.ready and self.checkpointer.advance()) or self.parent
            self.checkpointer.copy_some(0.0001)
            if self.rng.random() < 0.1:
                _change(self.catalogue, self.rng)
        return open_checkpoint(self.parent.location)

    def resumed(self):
        self.checkpointer.close()
        return _Run(self.store.storage.where, self.rng, self.every, self.parent)


def _same(found, expected):
    return found.combine_chunks().equals(expected.combine_chunks())


def _check(saved, expected, folder):
    merged = merged_catalogue(saved.source)
    assert _same(merged[ITEMS], expected.items)
    assert _same(merged[USERS], expected.users)
    restored = Catalogue(CONFIG)
    restored.apply(read_catalogue(saved.source))
    assert restored.known_ids.tolist() == expected.items[ITEM_ID].to_pylist()
    assert _same(restored.snapshot().users, expected.users)
    mapped = SavedCatalogue.open(saved)
    assert _same(pa.concat_tables(mapped.items.slices(4)), expected.items)
    assert mapped.item_count == restored.item_count
    some = mapped.only(np.arange(0, 60, 3), np.arange(0, 40, 3), CONFIG)
    everybody = np.arange(60)
    wanted = everybody % 3 == 0
    assert (some.knows(everybody) == (restored.knows(everybody) & wanted)).all()
    assert (some.user_attributes(everybody)[wanted] == restored.user_attributes(everybody)[wanted]).all()
    folder.mkdir()
    mapped.write(folder)
    assert _same(read_table(folder / ITEMS), expected.items)
    assert _same(read_table(folder / USERS).sort_by("user_id"), expected.users)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    steps=STEPS,
    every=st.integers(0, 4),
    at_once=st.integers(1, 5),
    much=st.sampled_from([0, 1 << 20]),
)
def test_a_chain_has_the_catalogue_of_its_last_snapshot(seed, steps, every, at_once, much):
    rng = np.random.default_rng(seed)
    with (
        TemporaryDirectory() as folder,
        patch("cluster.checkpoints.parts.catalogue._RECORDS_AT_ONCE", at_once),
        patch("cluster.checkpoints.writing._AT_ONCE_BYTES", much),
    ):
        run = _Run(Path(folder) / "checkpoints", rng, every)
        for number, step in enumerate([*steps, "checkpoint"]):
            if step in ("records", "events"):
                _change(run.catalogue, rng)
            elif step == "checkpoint":
                saved = Saved(run.checkpoint())
                _check(saved, run.expected, Path(folder) / str(number))
            else:
                run = run.resumed()
        run.checkpointer.close()


def test_a_delta_has_only_the_records_that_changed(tmp_path):
    rng = np.random.default_rng(0)
    run = _Run(tmp_path / "checkpoints", rng, every=9)
    items = np.arange(1, 50_001)
    run.catalogue.add_items(items)
    run.checkpointer.finish(1)
    assert run.catalogue.changed_count == 0
    run.catalogue.add_items(np.arange(50_001, 50_011))
    delta = run.checkpointer.finish(2)
    run.checkpointer.close()
    assert [entry["name"] for entry in delta.manifest["files"]] == ["catalogue-items.changes.arrow"]
    assert read_table(delta.file("catalogue-items.changes.arrow"))[ITEM_ID].to_pylist() == [
        *range(50_001, 50_011)
    ]
    assert merged_catalogue(delta)[ITEMS].num_rows == 50_010


def _record_of_user(user, age, deleted):
    columns = [pa.array([user]), pa.array([[age]], USER_SCHEMA.field("attributes").type), pa.array([deleted])]
    return CatalogueUpdate(ITEM_SCHEMA.empty_table(), pa.table(columns, USER_SCHEMA))


def test_a_full_checkpoint_holds_a_deleted_user_nowhere_also_after_a_restart(tmp_path):
    rare = 0x1234567890ABCDEF
    run = _Run(tmp_path / "checkpoints", np.random.default_rng(0), every=9)
    run.catalogue.apply(_record_of_user(rare, 3, False))
    run.parent = full = run.checkpointer.finish(1)
    run.catalogue.apply(_record_of_user(rare, 0, True))
    run.parent = delta = run.checkpointer.finish(2)
    held = [rare in read_catalogue(checkpoint).users["user_id"].to_pylist() for checkpoint in (full, delta)]
    assert held == [True, False]
    for again in (run, run.resumed()):
        whole = Checkpointer(
            CheckpointStore(tmp_path / f"{id(again)}"), Collectives(), [CataloguePart(again.catalogue)]
        )
        written = whole.finish(3)
        whole.close()
        assert written.manifest["kind"] == "full"
        assert not [f for f in written.path.iterdir() if rare.to_bytes(8, "little") in f.read_bytes()]
