"""Index versions in an object store: a real S3 server (moto) on a free port of loopback, through pyarrow.fs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval import read_item_vectors
from retrieval.config import IndexConfig
from retrieval.storage import objects
from retrieval.storage.base import StorageLocationError
from retrieval.storage.cache import FileCache
from retrieval.storage.objects import ObjectStorage
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionCorrupt, VersionError, VersionStore
from tests.support.s3_server import SECRET, objects_in


class Cut(BaseException):
    """No handler of ordinary errors may clean up after it."""


def commit(store, content=b"data", **described):
    building = store.begin()
    for name, data in (("file", content), ("other", content[::-1])):
        (building.path / name).write_bytes(data)
    return store.commit(building, described)


def folders(where):
    return {name.split("/")[0] for name in objects_in(where)[0]} - {"CURRENT"}


def test_a_searcher_follows_versions_in_s3_as_on_a_disk_and_rolls_back(bucket, tmp_path):
    places = (f"{bucket}/index", tmp_path / "index")
    found = {place: [] for place in places}
    for place in places:
        rng, searcher, store = np.random.default_rng(3), Searcher(place), VersionStore(place)
        assert searcher.version is None
        for step in range(3):
            vectors = rng.normal(size=(80, 8)).astype(np.float32)
            attempt = tmp_path / "attempt"
            attempt.mkdir(exist_ok=True)
            (attempt / "tower").write_bytes(b"tower %d" % step)
            publish(
                store,
                attempt,
                iter([(np.arange(80) * 10, vectors)]),
                vectors[:9],
                IndexConfig(kind="ivf_flat", nlist=4, nprobe=4, versions_to_keep=2, max_imbalance=100),
                metadata={"step": step},
                seed=1,
            )
            assert searcher.refresh()
            assert not searcher.refresh()
            assert searcher.version.file("tower").read_bytes() == b"tower %d" % step  # type: ignore[attr-defined]
            found[place] += searcher.search(vectors[:9], 5)
        assert store.names() == ["v00000002", "v00000003"]
        assert store.rollback("v00000002").name == "v00000002"
        assert searcher.refresh()
        assert searcher.version.manifest["step"] == 1  # type: ignore[attr-defined]
        table = read_item_vectors(place)
        assert table.schema.metadata == {b"version": b"v00000002"}
        assert table["item_id"].to_pylist() == list(range(0, 800, 10))
    assert all(np.array_equal(*pair) for pair in zip(*found.values(), strict=True))
    assert folders(places[0]) == {"v00000002", "v00000003"}
    assert not any("reserved" in name for name in objects_in(places[0])[0])


class DiesBefore:
    """A file system whose user dies before the n-th change of the object store."""

    def __init__(self, files, change):
        self._files, self._left = files, change

    def __getattr__(self, name):
        if name in ("open_output_stream", "delete_file", "delete_dir", "delete_dir_contents"):
            self._left -= 1
            if self._left < 0:
                raise Cut
        return getattr(self._files, name)


def test_whenever_a_writer_dies_in_s3_the_old_or_the_new_version_is_live_and_whole(bucket):
    outcomes = []
    for change in range(20):
        store = VersionStore(f"{bucket}/cut-{change}")
        store.promote(commit(store, b"one").name)
        cut = VersionStore(store.where)
        cut.storage._files = DiesBefore(cut.storage._files, change)  # type: ignore[attr-defined]
        died = False
        try:
            cut.promote(commit(cut, b"two").name)
        except Cut:
            died = True
        for name in store.names():
            store.verify(name)
        outcomes.append(store.current().file("file").read_bytes())
        store.promote(commit(store, b"three").name)
        assert store.current().file("file").read_bytes() == b"three"
        if not died:
            break
    # A reservation, two files, the manifest, the reservation goes, older deltas of the new version go, the pointer:
    # only then is the new one live. The deltas of the old one go last.
    assert outcomes == [b"one"] * 7 + [b"two"] * 2


def test_what_was_begun_in_s3_long_ago_is_removed_and_what_is_written_now_is_not(bucket, monkeypatch):
    store = VersionStore(f"{bucket}/begun")
    monkeypatch.setattr(ObjectStorage, "commit", lambda *_: (_ for _ in ()).throw(Cut))
    for _ in range(2):
        with pytest.raises(Cut):
            commit(store)
    monkeypatch.undo()
    assert store.names() == []
    assert folders(store.where) == {"v00000001", "v00000002"}
    assert commit(store).name == "v00000003"
    assert folders(store.where) == {"v00000001", "v00000002", "v00000003"}
    monkeypatch.setattr(objects, "ABANDONED_AFTER_S", -10.0)
    assert commit(store).name == "v00000004"
    assert folders(store.where) == {"v00000003", "v00000004"} == set(store.names())


def test_many_writers_in_s3_get_different_names_and_every_version_is_whole(bucket):
    store = VersionStore(f"{bucket}/many")
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: commit(store, b"%d" % n, n=n), range(12)))
    assert sorted(version.name for version in made) == store.names()
    assert len(store.names()) == 12
    for name in store.names():
        version = store.verify(name)
        assert version.file("file").read_bytes() == b"%d" % version.manifest["n"]


def test_two_that_reserve_one_name_in_s3_both_give_way(bucket, monkeypatch):
    store, put, others = VersionStore(f"{bucket}/reserved"), ObjectStorage._put, []

    def put_beside_another(self, path, content):
        put(self, path, content)
        if "reserved-" in path and not others:
            others.append(f"{path}-of-another")
            put(self, others[0], content)

    monkeypatch.setattr(ObjectStorage, "_put", put_beside_another)
    version = commit(store)
    assert others[0].split("/")[2] == "v00000001" < version.name
    assert store.names() == [version.name]


def test_a_version_in_s3_that_goes_live_while_it_is_removed_comes_back(bucket, monkeypatch):
    store = VersionStore(f"{bucket}/back")
    names = [commit(store).name for _ in range(2)]
    store.promote(names[1])
    delete = store.storage._files.delete_file  # type: ignore[attr-defined]

    class PromotedMeanwhile:
        def __getattr__(self, name):
            return getattr(files, name)

        def delete_file(self, path):
            delete(path)
            if path.endswith("manifest.json"):
                store.storage.notes.put("CURRENT", names[0].encode())

    files = store.storage._files  # type: ignore[attr-defined]
    store.storage._files = PromotedMeanwhile()  # type: ignore[attr-defined]
    store.prune(1)
    assert store.names() == names
    assert store.verify(store.live_name()).name == names[0]


def test_a_version_in_s3_that_is_removed_while_it_goes_live_does_not(bucket, monkeypatch):
    store = VersionStore(f"{bucket}/gone")
    names = [commit(store).name for _ in range(2)]
    notes = ObjectStorage.notes.fget(store.storage)  # type: ignore[attr-defined]

    class RemovedMeanwhile:
        def __getattr__(self, name):
            return getattr(notes, name)

        def put(self, name, content):
            if content == names[0].encode():
                store.storage.remove(names[0])
            notes.put(name, content)

    monkeypatch.setattr(ObjectStorage, "notes", property(lambda self: RemovedMeanwhile()))
    with pytest.raises(VersionError, match=f"there is no index version '{names[0]}'"):
        store.promote(names[0])
    assert store.current() is None
    store.promote(names[1])
    assert store.current().name == names[1]


@pytest.mark.parametrize("damage", [b"dat", b"dato", None])
def test_a_damaged_object_is_named_and_never_rolled_back_to(bucket, damage, tmp_path):
    store = VersionStore(f"{bucket}/damaged-{damage}")
    old, new = (store.promote(commit(store, content).name) for content in (b"data", b"new!"))
    store.verify(old.name)  # in the cache from now on
    found, filesystem = objects_in(store.where)
    path = found[f"{old.name}/file"].path
    if damage is None:
        filesystem.delete_file(path)
    else:
        with filesystem.open_output_stream(path) as victim:
            victim.write(damage)
    elsewhere = VersionStore(store.where, FileCache(tmp_path / "empty"))
    with pytest.raises(VersionCorrupt, match="v00000001 is damaged: file "):
        elsewhere.verify(old.name)
    assert not [p for p in (tmp_path / "empty").glob("*/*") if p.read_bytes() == damage]
    with pytest.raises(VersionCorrupt, match="v00000001 is damaged: file "):
        store.rollback(old.name)
    assert store.current() == new


def test_files_are_fetched_from_s3_once_and_a_pointer_to_nothing_is_an_error(bucket, cache, monkeypatch):
    store = VersionStore(f"{bucket}/once")
    name = commit(store).name
    fetched, reading = [], ObjectStorage.reading
    monkeypatch.setattr(
        ObjectStorage, "reading", lambda self, *file: (fetched.append(file), reading(self, *file))[1]
    )
    for _ in range(3):
        assert VersionStore(store.where).verify(name).file("file").read_bytes() == b"data"
    assert fetched == [(name, "file"), (name, "other")]
    assert {path.stat().st_mode & 0o777 for path in cache.glob("[0-9a-f]*/*")} == {0o600}
    with pytest.raises(VersionError, match="is not a folder on this machine"):
        _ = store.open(name).path
    store.storage.notes.put("CURRENT", b"v00000009")
    with pytest.raises(VersionError, match="there is no index version 'v00000009'"):
        Searcher(store.where)


def test_credentials_in_the_location_are_refused_with_the_setting():
    with pytest.raises(StorageLocationError, match=r"train\.index_path holds credentials") as refused:
        VersionStore(f"s3://somebody:{SECRET}@runs/x")
    assert SECRET not in str(refused.value)
