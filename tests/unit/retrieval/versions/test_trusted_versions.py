"""A version is read only where its manifest can be believed, and only what the manifest lists."""

import json
import os

import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.ivf import IvfIndex
from retrieval.storage.durable import manifest_checksum
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionCorrupt
from tests.support.full_disk import files_of_at_most
from tests.unit.retrieval.conftest import clustered
from tests.unit.retrieval.versions.test_store import commit


def rewrite(version, sign=True, **changes):
    """The manifest with other content, signed as a stranger could sign it too."""
    manifest = {**version.manifest, **changes}
    if sign:
        manifest["checksum"] = manifest_checksum(manifest)
    (version.path / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_that_was_changed_is_refused_before_its_numbers_are_used(store, put):
    version = put(*clustered(1200)).version
    rewrite(version, sign=False, nprobe=1)
    with pytest.raises(VersionCorrupt, match="does not match its own checksum"):
        Searcher(store.root)


def test_a_manifest_whose_signature_was_taken_away_is_no_older_one(store):
    version = commit(store)
    unsigned = {name: value for name, value in version.manifest.items() if name != "checksum"}
    (version.path / "manifest.json").write_text(json.dumps(unsigned))
    with pytest.raises(VersionCorrupt, match="does not match its own checksum"):
        store.verify(version.name)


def test_a_version_of_the_earlier_format_is_still_read(store, put):
    vectors, queries = clustered(1200)
    version = put(vectors, queries).version
    earlier = {name: value for name, value in version.manifest.items() if name != "checksum"}
    (version.path / "manifest.json").write_text(json.dumps(earlier | {"format": 1}))
    assert Searcher(store.root).search(queries, 3)[0].shape == (300, 3)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", "", None, 7])
def test_a_name_that_leads_out_of_the_folder_is_refused(store, name):
    version = commit(store)
    (store.root / "secret").write_bytes(b"data")
    rewrite(version, files=[{**version.manifest["files"][0], "name": name}])
    with pytest.raises(VersionCorrupt, match="not names in its folder"):
        store.verify(version.name)


def test_a_link_in_the_place_of_a_file_or_of_the_manifest_is_refused(store):
    for name in ("file", "manifest.json"):
        version = commit(store)
        elsewhere = (version.path / name).rename(store.root / f"elsewhere-{name}")
        (version.path / name).symlink_to(elsewhere)
        with pytest.raises(VersionCorrupt, match="not a file but a link"):
            store.verify(version.name)


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(store):
    version = commit(store)
    (version.path / "file").unlink()
    os.mkfifo(version.path / "file")
    with pytest.raises(VersionCorrupt, match="not a file but a link"):
        store.verify(version.name)


def test_a_file_that_the_manifest_does_not_list_is_not_read(store, put):
    version = put(*clustered(1200)).version
    rewrite(version, files=[e for e in version.manifest["files"] if e["name"] != "index-0000.faiss"])
    with pytest.raises(VersionCorrupt, match=r"does not list index-0000\.faiss"):
        Searcher(store.root)


def test_a_damaged_query_tower_keeps_its_index_out_of_the_searcher(store, put):
    vectors, queries = clustered(1200)
    files = {"tower.bin": b"weights"}
    first = put(vectors, queries, extra_files=files).version
    searcher = Searcher(store.root)
    second = put(vectors, queries, extra_files=files).version
    (second.path / "tower.bin").write_bytes(b"weighty")
    with pytest.raises(VersionCorrupt, match=r"tower\.bin does not match"):
        searcher.refresh()
    assert searcher.version == first


def test_only_their_owner_reads_versions_whatever_the_umask(store, put):
    before = os.umask(0)
    try:
        version = put(*clustered(1200), extra_files={"tower.bin": b"weights"}).version
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (store.root, version.path)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in version.path.iterdir()} == {0o600}
    assert (store.root / "CURRENT").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("missing", [1, 4096, 300_000])
def test_an_index_that_the_disk_cuts_short_is_an_error_not_a_shorter_file(tmp_path, missing):
    """Faiss's own writer says nothing when the end of a file finds no room."""
    vectors, _ = clustered(3000)
    index = IvfIndex.build(vectors, IndexConfig(kind="ivf_flat"), seed=1)
    index.save(tmp_path / "whole")
    room = (tmp_path / "whole").stat().st_size - missing
    with files_of_at_most(room), pytest.raises(OSError, match="File too large"):
        index.save(tmp_path / "short")
