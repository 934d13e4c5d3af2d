"""The live version is read from the pointer, no matter which process moved it."""

from cluster.queries.live_index import LiveIndex
from retrieval.versions.store import VersionStore


def _publish(store, **figures):
    building = store.begin()
    (building.path / "x").write_bytes(b"x")
    return store.promote(store.commit(building, figures).name).name


def test_a_version_of_an_earlier_run_a_later_one_and_a_rollback_are_seen(tmp_path):
    store = VersionStore(tmp_path / "index")
    live = LiveIndex(VersionStore(tmp_path / "index"))
    assert live.figures() == {}
    first = _publish(store, items=7, kind="flat", nlist=1, nprobe=1, recall=1.0, step=3)
    expected = {"version": first, "items": 7, "kind": "flat", "nlist": 1, "nprobe": 1, "recall": 1.0}
    assert live.figures() == expected
    second = _publish(store, items=8)
    assert live.figures()["version"] == second
    store.rollback(first)
    assert live.figures() == expected


def test_a_folder_that_cannot_be_read_changes_nothing(tmp_path):
    store = VersionStore(tmp_path / "index")
    name = _publish(store, items=7)
    live = LiveIndex(store)
    assert live.figures()["version"] == name
    (store.root / "CURRENT").write_text("v00000099")
    assert live.figures()["version"] == name
