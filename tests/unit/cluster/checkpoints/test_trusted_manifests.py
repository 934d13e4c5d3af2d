"""A checkpoint's manifest names files of its own folder, and only its owner reads them."""

import json
import os

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.manifest import CheckpointError
from retrieval.storage.durable import manifest_checksum


@pytest.fixture
def committed(tmp_path):
    store = CheckpointStore(tmp_path / "runs" / "checkpoints")
    writing = store.begin(1)
    return store.commit(writing, [writing.write_tensors("towers.safetensors", {"w": torch.ones(2)})], {})


def resigned(checkpoint, **changes):
    """Other content, signed as a stranger could sign it too."""
    manifest = {**checkpoint.manifest, **changes}
    manifest["checksum"] = manifest_checksum(manifest)
    (checkpoint.path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub/file", "..", "", None])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(committed, name):
    resigned(committed, files=[{**committed.manifest["files"][0], "name": name}])
    with pytest.raises(CheckpointError, match="does not lie in its folder"):
        open_checkpoint(committed.path)


@pytest.mark.parametrize("name", ["../other/step-00000001", "/step-00000001", "..", "index", None])
def test_a_chain_that_leads_out_of_the_storage_is_refused(committed, name):
    resigned(committed, chain=[{"name": name, "checksum": ""}])
    for read in (lambda: open_checkpoint(committed.path), lambda: _store(committed).open(committed.name)):
        with pytest.raises(CheckpointError, match="does not lie in its folder"):
            read()


@pytest.mark.parametrize("name", ["towers.safetensors", "manifest.json"])
def test_a_link_in_the_place_of_a_file_is_refused(committed, name, tmp_path):
    (committed.path / name).rename(tmp_path / "elsewhere")
    (committed.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"damaged:.* link"):
        open_checkpoint(committed.path)


def test_a_file_that_the_manifest_does_not_list_is_not_read(committed):
    (committed.path / "more").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="does not list more"):
        committed.file("more")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_their_owner_reads_checkpoints_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = CheckpointStore(tmp_path / "runs" / "checkpoints")
        store.join("one")
        writing = store.begin(1)
        store.commit(writing, [writing.write_tensors("towers.safetensors", {"w": torch.ones(2)})], {})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    folders = [tmp_path / "runs", *(path for path in (tmp_path / "runs").rglob("*") if path.is_dir())]
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def _store(checkpoint):
    return CheckpointStore(checkpoint.path.parent)
