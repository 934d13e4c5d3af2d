import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieval.versions.store import VersionCorrupt, VersionError, VersionRefused


def commit(store, content=b"data", **described):
    building = store.begin()
    (building.path / "file").write_bytes(content)
    return store.commit(building, described)


def test_names_count_up_also_after_old_versions_are_gone(store):
    for _ in range(3):
        store.promote(commit(store).name)
    store.prune(1)
    assert commit(store).name == "v00000004"
    assert store.names() == ["v00000003", "v00000004"]


def test_a_version_is_not_live_before_it_is_promoted(store):
    version = commit(store, step=3)
    assert store.current() is None
    assert store.promote(version.name).manifest["step"] == 3
    assert store.current() == version
    assert store.versions() == [version]


def test_metadata_cannot_take_the_place_of_what_the_store_writes(store):
    version = commit(store, format=99, version="v9", files=[])
    assert store.open(version.name).manifest["version"] == "v00000001"
    assert [file["name"] for file in version.manifest["files"]] == ["file"]


def test_the_live_version_is_never_pruned(store):
    for _ in range(4):
        commit(store)
    store.promote("v00000001")
    store.prune(1)
    assert store.names() == ["v00000001", "v00000004"]
    assert store.current().name == "v00000001"


@pytest.mark.parametrize("damage", [b"dat", b"dato", None])
def test_a_damaged_file_is_named(store, damage):
    version = commit(store)
    file = version.path / "file"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(VersionCorrupt, match="v00000001 is damaged: file "):
        store.verify(version.name)


def test_a_pointer_to_nothing_is_an_error_not_an_empty_store(store):
    commit(store)
    (store.root / "CURRENT").write_text("v00000009")
    with pytest.raises(VersionError, match="'v00000009'"):
        store.current()


def test_rolling_back_makes_an_older_version_live(store):
    for content in (b"old", b"new"):
        store.promote(commit(store, content).name)
    assert store.rollback("v00000001").name == "v00000001"
    assert (store.current().path / "file").read_bytes() == b"old"


def test_rolling_back_to_a_damaged_version_keeps_the_live_one(store):
    for _ in range(2):
        store.promote(commit(store).name)
    (store.root / "v00000001" / "file").write_bytes(b"x")
    with pytest.raises(VersionCorrupt):
        store.rollback("v00000001")
    assert store.current().name == "v00000002"


@pytest.mark.parametrize("name", ["v00000007", "../elsewhere", "", "CURRENT"])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(store, name):
    commit(store)
    with pytest.raises(VersionError, match="there are: v00000001"):
        store.promote(name)


def test_an_unknown_format_is_refused(store):
    version = commit(store)
    (version.path / "manifest.json").write_text(json.dumps({**version.manifest, "format": 3}))
    with pytest.raises(VersionError, match="version format 3; this version reads 1 and 2"):
        store.promote(version.name)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_manifest_that_cannot_be_read_is_named(store, content):
    version = commit(store)
    (version.path / "manifest.json").write_text(content)
    with pytest.raises(VersionCorrupt, match=r"manifest\.json"):
        store.open(version.name)


def test_a_second_writer_leaves_what_the_first_is_building(store):
    first = store.begin()
    (first.path / "file").write_bytes(b"first")
    second = commit(store, b"second")
    version = store.commit(first, {})
    assert [second.name, version.name] == ["v00000001", "v00000002"]
    assert (version.path / "file").read_bytes() == b"first"


def test_many_writers_get_different_names(store):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: commit(store, b"%d" % n, n=n), range(24)))
    assert sorted(version.name for version in made) == store.names()
    assert len(store.names()) == 24
    assert all((version.path / "file").read_bytes() == b"%d" % version.manifest["n"] for version in made)


def test_what_a_killed_process_was_building_is_removed_by_the_next_one(store):
    code = (
        "import os, signal, sys, pathlib; from retrieval.versions.store import VersionStore\n"
        "building = VersionStore(pathlib.Path(sys.argv[1])).begin()\n"
        "(building.path / 'file').write_bytes(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(store.root)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(store.root.glob(".building-*"))) == 1
    commit(store)
    assert list(store.root.glob(".building-*")) == []


def test_a_refused_version_is_kept_and_is_made_live_only_on_demand(store):
    store.promote(commit(store).name)
    aside = commit(store, refused="recall is 0.9, below the bound 0.95")
    assert store.open(aside.name).refused == aside.refused
    for change in (store.promote, store.rollback):
        with pytest.raises(VersionRefused, match=r"v00000002 was refused: recall is 0\.9"):
            change(aside.name)
    assert store.current().name == "v00000001"
    assert store.rollback(aside.name, refused=True).name == "v00000002"
    assert store.current().name == "v00000002"


def test_a_refused_version_without_an_index_is_never_live(store):
    aside = commit(store, refused="finite is 0.5", has_index=False)
    with pytest.raises(VersionRefused, match=r"it has no index: finite is 0\.5"):
        store.promote(aside.name, refused=True)
    assert store.current() is None


def test_few_refused_versions_are_kept_beside_the_others_and_no_number_is_given_twice(store):
    for n in range(8):
        name = commit(store, **({"refused": "why"} if n % 2 else {})).name
        if n % 2 == 0:
            store.promote(name)
        store.prune(2, refused=1)
    assert store.names() == ["v00000005", "v00000007", "v00000008"]
    store.promote("v00000008", refused=True)
    for _ in range(3):
        commit(store, refused="why")
        store.prune(2, refused=1)
    assert store.names() == ["v00000005", "v00000007", "v00000008", "v00000011"]


def test_a_version_that_cannot_be_read_is_pruned_like_one_that_passed(store):
    for _ in range(3):
        store.promote(commit(store).name)
    (store.root / "v00000001" / "manifest.json").write_text("{")
    store.prune(2)
    assert store.names() == ["v00000002", "v00000003"]
