import json
import time

import numpy as np
import pytest

from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import Delta, DeltaError, DeltasDropped, write_items
from retrieval.storage.durable import manifest_checksum
from tests.support.full_disk import refusing
from tests.unit.retrieval.deltas.conftest import append, live_version


def numbers_after(chain, *applied):
    return [delta.number for delta in chain.after(*applied)]


def test_deltas_are_numbered_and_each_names_its_predecessor(store, version, chain):
    first, second = append(chain, [7], step=3), append(chain, deleted=[7, 9])
    assert (first.name, first.number, first.previous) == ("d00000001", 1, version.manifest["checksum"])
    assert (second.name, second.number, second.previous) == ("d00000002", 2, first.checksum)
    assert first.manifest["step"] == 3
    assert DeltaChain(store, version).names() == ["d00000001", "d00000002"]
    assert chain.verify() == {"d00000001": "", "d00000002": ""}


def test_a_delta_holds_the_items_of_all_ranks_and_files_of_others(chain):
    folder = chain.begin()
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    write_items(folder.path, 0, np.array([1, 2]), vectors[:2], np.array([10]))
    write_items(folder.path, 2, np.array([-3, -4, -5, -6]), vectors[2:], np.array([-11]))
    (folder.path / "rows-0000.arrow").write_bytes(b"rows")
    delta = chain.commit(folder, {})
    ids, found = delta.items()
    assert ids.tolist() == [1, 2, -3, -4, -5, -6]
    assert (found == vectors).all()
    assert delta.deleted().tolist() == [10, -11]
    assert delta.files("rows-") == ["rows-0000.arrow"]
    assert delta.file("rows-0000.arrow").read_bytes() == b"rows"


def test_a_delta_without_items_changes_none(chain):
    delta = append(chain)
    ids, vectors = delta.items()
    assert (ids.shape, vectors.shape, delta.deleted().shape) == ((0,), (0, 0), (0,))


def test_a_reader_gets_what_follows_its_delta(store, version, chain):
    reader = DeltaChain(store, version)
    assert numbers_after(reader, 0) == []
    deltas = [append(chain, [n]) for n in range(3)]
    assert numbers_after(reader, 0) == [1, 2, 3]
    assert numbers_after(reader, 2, deltas[1].checksum) == [3]
    assert numbers_after(reader, 2) == [3]
    assert numbers_after(reader, 3, deltas[2].checksum) == []


def test_another_writer_continues_the_chain(store, version, chain):
    append(chain, [1])
    append(DeltaChain(store, version), [2])
    assert numbers_after(chain, 0) == [1, 2]
    with pytest.raises(FileExistsError, match="d00000002"):
        append(chain, [3])
    assert append(chain, [3]).number == 3
    assert numbers_after(chain, 0) == [1, 2, 3]


def test_a_truncated_or_flipped_file_stops_the_reader_there(chain, deltas):
    for n in range(3):
        append(chain, [n])
    path = deltas / "d00000002" / "items-0000.arrow"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content, problem in ((whole[:-1], "bytes instead of"), (bytes(flipped), "checksum")):
        path.write_bytes(content)
        applied = []
        with pytest.raises(DeltaError, match=rf"delta d00000002 .*items-0000.arrow .*{problem}"):
            applied.extend(delta.number for delta in chain.after(0))
        assert [name for name, why in chain.verify().items() if why] == ["d00000002"]
    path.unlink()
    with pytest.raises(DeltaError, match=r"items-0000.arrow is missing"):
        list(chain.after(1))
    path.write_bytes(whole)
    assert numbers_after(chain, 0) == [1, 2, 3]


@pytest.mark.parametrize("position", [0, 40, -2])
def test_a_flipped_byte_of_a_manifest_stops_the_reader_there(chain, deltas, position):
    append(chain, [1])
    path = deltas / "d00000001" / "manifest.json"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeltaError, match="d00000001"):
        list(chain.after(0))


def test_a_gap_is_named(chain, deltas):
    for n in range(3):
        append(chain, [n])
    (deltas / "d00000002").rename(deltas / "elsewhere")
    with pytest.raises(DeltaError, match=r"d00000002 .*is missing"):
        list(chain.after(1))
    assert "d00000002 is missing" in chain.verify()["d00000003"]


def test_a_foreign_successor_is_refused(chain, deltas):
    append(chain, [1])
    append(chain, [2])
    path = deltas / "d00000002" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"previous": "0" * 64}
    path.write_text(json.dumps(manifest | {"checksum": manifest_checksum(manifest)}))
    with pytest.raises(DeltaError, match=r"d00000002 .*follows a delta with the checksum '0000"):
        list(chain.after(1))
    assert "predecessor" in chain.verify()["d00000002"]


def test_a_delta_of_another_version_is_refused(store, chain, deltas):
    append(chain, [1])
    (deltas / "d00000001").rename(deltas.parent / "kept")
    (deltas.parent / "kept").rename(deltas / "d00000002")
    append(chain := DeltaChain(store, live_version(store)), [1])
    with pytest.raises(DeltaError, match="no delta 'd00000002'"):
        chain.open("d00000002")


def test_a_reader_of_dropped_deltas_is_told(chain):
    delta = append(chain, [1])
    chain.remove()
    assert chain.names() == []
    with pytest.raises(DeltasDropped, match=r"d00000001 .*was dropped"):
        list(chain.after(1, delta.checksum))
    assert numbers_after(chain, 0) == []
    other = append(chain, [1], step=2)
    assert other.number == 1
    append(chain, [2])
    with pytest.raises(DeltasDropped):
        list(chain.after(1, delta.checksum))


def test_only_the_live_version_gets_deltas(store, chain, deltas):
    append(chain, [1])
    live_version(store)
    with pytest.raises(DeltasDropped, match="gets no deltas: v00000002 is live"):
        append(chain, [2])


def test_a_version_that_is_left_while_a_delta_is_committed_keeps_none(store, chain, monkeypatch):
    lives = iter(["v00000001", "v00000002"])
    monkeypatch.setattr(store, "live_name", lambda: next(lives))
    with pytest.raises(DeltasDropped, match="not committed: its predecessors were dropped"):
        append(chain, [1])
    assert chain.names() == []


def test_deltas_dropped_while_one_is_committed_leave_nothing_behind(chain, monkeypatch):
    append(chain, [1])
    commit_as = chain._storage.commit_as

    def after_a_drop(*args):
        chain._storage.remove("d00000001")  # an object store drops deltas and leaves the folder being written
        commit_as(*args)

    monkeypatch.setattr(chain._storage, "commit_as", after_a_drop)
    with pytest.raises(DeltasDropped, match="dropped"):
        append(chain, [2])
    monkeypatch.undo()
    assert chain.names() == []
    assert append(chain, [3]).number == 1


def test_what_failed_a_gate_is_kept_aside_with_the_reason_and_never_read(chain):
    for n in range(3):
        folder = chain.begin()
        write_items(folder.path, 0, np.array([n]), np.ones((1, 2), np.float32), np.empty(0, np.int64))
        chain.aside(folder, {"step": n}, f"reason {n}")
    assert chain.refused() == {"aside-00000002": "reason 1", "aside-00000003": "reason 2"}
    assert chain.names() == numbers_after(chain, 0) == []
    assert append(chain, [1]).number == 1


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_full_disk_costs_that_delta_only(store, chain, call):
    append(chain, [1])
    folder = chain.begin()
    write_items(folder.path, 0, np.array([2]), np.ones((1, 2), np.float32), np.empty(0, np.int64))
    with refusing(call, below=store.root), pytest.raises(OSError, match="No space left"):
        chain.commit(folder, {})
    folder.remove()
    assert numbers_after(chain, 0) == [1]
    assert append(chain, [2]).number == 2
    assert numbers_after(chain, 0) == [1, 2]


def test_leftovers_of_a_killed_writer_are_removed(chain, deltas):
    append(chain, [1])
    folder = chain.begin()
    write_items(folder.path, 0, np.array([2]), np.ones((1, 2), np.float32), np.empty(0, np.int64))
    folder.lock.close()  # as the end of its process does
    chain.begin()
    assert not folder.path.exists()
    assert chain.names() == ["d00000001"]


def test_vectors_of_two_widths_are_damage(chain):
    folder = chain.begin()
    for rank in (0, 1):
        write_items(
            folder.path, rank, np.array([rank]), np.ones((1, 2 + rank), np.float32), np.array([], int)
        )
    with pytest.raises(DeltaError, match=r"widths \[2, 3\]"):
        chain.commit(folder, {}).items()


@pytest.mark.parametrize("cut", [8, 600])
@pytest.mark.parametrize("name", ["items-0000.arrow", "deleted-0000.arrow"])
def test_a_file_that_was_committed_cut_off_is_damage(chain, name, cut):
    """Its checksum matches; what it holds cannot be read."""
    folder = chain.begin()
    write_items(folder.path, 0, np.arange(500), np.ones((500, 2), np.float32), np.arange(500, 1000))
    (folder.path / name).write_bytes((folder.path / name).read_bytes()[:-cut])
    delta = chain.commit(folder, {})
    read = delta.items if name.startswith("items") else delta.deleted
    with pytest.raises(DeltaError, match="d00000001"):
        read()


def test_a_commit_takes_less_than_20_ms(chain):
    append(chain, [1])
    seconds = []
    for n in range(10):
        start = time.thread_time()
        append(chain, [n])
        seconds.append(time.thread_time() - start)
    assert sorted(seconds)[5] < 0.02
    assert isinstance(chain.open("d00000011"), Delta)
