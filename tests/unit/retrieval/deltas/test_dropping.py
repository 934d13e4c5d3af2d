"""Only the live version has deltas."""

import os

import pytest

from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import DeltasDropped
from retrieval.versions.store import VersionStore
from tests.unit.retrieval.deltas.conftest import append, live_version


def test_promoting_another_version_drops_the_deltas_of_the_one_that_is_left(store, version, chain):
    append(chain, [1])
    store.promote(version.name)
    assert chain.names() == ["d00000001"]
    live_version(store)
    assert chain.names() == []
    store.rollback(version.name)
    assert chain.names() == []
    with pytest.raises(DeltasDropped, match="predecessors were dropped"):
        append(chain, [2])
    assert append(DeltaChain(store, version), [2]).number == 1


def test_a_writer_of_dropped_deltas_does_not_continue_those_of_another(store, version):
    old = DeltaChain(store, version)
    append(old, [1])
    live_version(store)
    store.rollback(version.name)
    new = DeltaChain(store, version)
    append(new, [2])
    with pytest.raises(DeltasDropped, match="predecessors were dropped"):
        append(old, [3])
    assert new.names() == ["d00000001"]
    assert append(new, [4]).number == 2


def test_a_deltas_folder_is_no_version(store, version, chain):
    append(chain, [1])
    assert VersionStore(store.root).names() == [version.name]


def test_a_version_is_promoted_although_deltas_cannot_be_removed(store, version, chain, monkeypatch):
    """The pointer has moved, and what is left is neither read nor continued."""
    append(chain, [1])

    remove = type(store.storage).remove_folder

    def refuse(storage, name):
        if name == "deltas/v00000001":
            raise PermissionError(13, "Permission denied")
        remove(storage, name)

    monkeypatch.setattr(type(store.storage), "remove_folder", refuse)
    assert live_version(store).name == store.live_name() == "v00000002"
    monkeypatch.undo()
    assert os.listdir(store.root / "deltas") == ["v00000001"]
    with pytest.raises(DeltasDropped, match="v00000002 is live"):
        append(chain, [1])
    store.rollback(version.name)
    assert chain.names() == []


def test_the_deltas_of_a_removed_version_are_removed(store, version, chain):
    append(chain, [1])
    (store.root / "deltas" / "v00000001").rename(store.root / "kept")
    live_version(store)
    live_version(store)
    (store.root / "deltas").mkdir(exist_ok=True)
    (store.root / "kept").rename(store.root / "deltas" / "v00000001")
    store.prune(keep=1)
    assert os.listdir(store.root / "deltas") == []
