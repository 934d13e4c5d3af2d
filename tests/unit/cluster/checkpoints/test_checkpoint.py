"""Commit, choose, verify, prune: what a crash or a flipped bit leaves behind."""

import json
import logging

import pyarrow as pa
import pytest
import torch

from cluster.checkpoints.array_files import read_table, read_tensors
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.storage import nothing


def _commit(store, step, content=1.0, parent=None):
    writing = store.begin(step)
    files = [
        writing.write_tensors("towers.safetensors", {"w": torch.full((5, 3), content)}),
        writing.write_table("rows-0000-4096.arrow", pa.table({"id": [step, step + 1]})),
    ]
    checkpoint = store.commit(writing, files, {"positions": {"0": [step, 0]}}, parent)
    store.prune()
    return checkpoint


def _chain(store, *steps):
    """A full checkpoint and deltas on it."""
    links = []
    for step in steps:
        links.append(_commit(store, step, parent=links[-1] if links else None))
    return links


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


def test_the_newest_checkpoint_is_the_last_one_committed_with_its_state_and_files(store):
    assert store.newest() is None
    for step in (5, 40, 9000):
        _commit(store, step, content=float(step))
    newest = store.newest()
    assert newest.step == 9000
    assert newest.manifest["positions"] == {"0": [9000, 0]}
    assert [f.name for f in newest.files("rows-")] == ["rows-0000-4096.arrow"]
    assert read_table(newest.files("rows-")[0])["id"].to_pylist() == [9000, 9001]
    assert read_tensors(newest.file("towers.safetensors"))["w"].unique().tolist() == [9000.0]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_commit_removes_all_but_the_newest_checkpoints(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep=keep)
    for step in (1, 2, 3, 4, 5):
        _commit(store, step)
    assert store.names() == [f"step-{s:08d}" for s in range(6 - keep, 6)]


def test_checkpoints_are_ordered_by_step_also_beyond_eight_digits(store):
    for step in (99_999_999, 100_000_000):
        _commit(store, step)
    assert store.newest().step == 100_000_000


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _remove])
@pytest.mark.parametrize("name", ["towers.safetensors", "rows-0000-4096.arrow"])
def test_a_damaged_newest_checkpoint_is_named_loudly_and_the_one_before_it_is_taken(
    store, caplog, damage, name
):
    _commit(store, 1)
    damage(_commit(store, 2).path / name)
    with caplog.at_level(logging.ERROR):
        assert store.newest().step == 1
    assert "step-00000002 is damaged" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("damage", [_truncate, _remove, lambda file: file.write_bytes(b"\xff\xfe{")])
def test_a_checkpoint_without_a_readable_manifest_is_passed_over(store, caplog, damage):
    _commit(store, 1)
    damage(_commit(store, 2).path / "manifest.json")
    with caplog.at_level(logging.ERROR):
        assert store.newest().step == 1
    assert "step-00000002" in caplog.text


def test_when_no_checkpoint_verifies_the_error_says_what_to_set(store):
    _truncate(_commit(store, 1).path / "towers.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints .* storage_path"):
        store.newest()


def test_a_position_that_was_changed_in_the_manifest_is_noticed(store, caplog):
    _commit(store, 1)
    manifest = _commit(store, 2).path / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"positions": {"0": [3, 0]}}
    manifest.write_text(json.dumps(changed, indent=1))
    assert store.newest().step == 1
    assert "manifest.json does not match its own checksum" in caplog.text


@pytest.mark.parametrize(
    "manifest",
    [{"format": 99, "files": []}, {"step": 3}, [1, 2], "text", {"format": 1}, {"format": 2, "files": [7]}],
)
def test_a_manifest_of_another_format_is_refused_with_the_path(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        open_checkpoint(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "photo.jpg"):
        with pytest.raises(CheckpointError, match=f"{path.name} is not a checkpoint"):
            open_checkpoint(path)


def test_a_crash_before_the_rename_leaves_garbage_that_is_ignored_and_removed_by_the_next_commit(store):
    _commit(store, 1)
    writing = store.begin(2)
    writing.write_tensors("towers.safetensors", {"w": torch.zeros(2)})
    (store.storage.root / ".writing-step-00000002" / "manifest.json").write_text("{}")
    assert store.newest().step == 1
    _commit(store, 3)
    assert {p.name for p in store.storage.root.iterdir()} == {"step-00000001", "step-00000003"}


def test_a_step_that_was_damaged_and_trained_again_is_written_beside_the_damaged_one(store):
    _commit(store, 1)
    damaged = _commit(store, 2)
    _truncate(damaged.path / "towers.safetensors")
    again = _commit(store, 2, content=7.0)
    assert (again.name, again.step) == ("step-00000002.1", 2)
    assert store.newest().name == again.name
    assert read_tensors(again.file("towers.safetensors"))["w"].unique().tolist() == [7.0]


def test_a_delta_knows_its_chain_and_reads_the_files_of_all_links_in_order(store):
    _chain(store, 1, 2, 3)
    newest = store.newest()
    assert newest.manifest["kind"] == "delta"
    assert [link.name for link in newest.links] == ["step-00000001", "step-00000002", "step-00000003"]
    assert [read_table(f)["id"][0].as_py() for f in newest.files("rows-")] == [1, 2, 3]


def test_retention_keeps_every_link_that_a_kept_checkpoint_builds_on(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    _commit(store, 1)
    _chain(store, 2, 3, 4, 5)  # the first one is what is left should the second be damaged
    assert store.names() == [f"step-{s:08d}" for s in (1, 2, 3, 4, 5)]
    _commit(store, 6)
    assert store.names() == [f"step-{s:08d}" for s in (2, 3, 4, 5, 6)]
    _commit(store, 7)
    assert store.names() == ["step-00000006", "step-00000007"]


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_of_a_chain_with_a_bad_link_the_part_before_it_or_the_chain_before_it_is_used(store, caplog, damaged):
    _commit(store, 0)
    _flip_a_bit(_chain(store, 1, 2, 3)[damaged - 1].path / "rows-0000-4096.arrow")
    assert store.newest().step == damaged - 1
    assert f"step-0000000{damaged} is damaged: rows-0000-4096.arrow does not match" in caplog.text


def test_a_link_that_was_replaced_by_another_whole_checkpoint_of_its_name_breaks_the_chain(tmp_path, caplog):
    store, other = CheckpointStore(tmp_path / "a"), CheckpointStore(tmp_path / "b")
    _commit(store, 0)
    full, _ = _chain(store, 1, 2)
    foreign = _commit(other, 1, content=9.0)
    (full.path / "rows-0000-4096.arrow").unlink()
    full.path.rename(tmp_path / "away")
    foreign.path.rename(full.path)
    assert store.newest().name == "step-00000001"
    assert "builds on another step-00000001" in caplog.text


@pytest.mark.parametrize("step", ["begin", "manifest", "rename", "renamed", "prune"])
def test_a_commit_that_is_cut_at_any_step_leaves_the_old_checkpoint_or_the_whole_new_one(tmp_path, step):
    class Cut(BaseException):
        pass

    def cut(name):
        if name == step:
            raise Cut

    _commit(CheckpointStore(tmp_path, keep=1), 1)
    with pytest.raises(Cut):
        _commit(CheckpointStore(tmp_path, keep=1, at=cut), 2)
    again = CheckpointStore(tmp_path, keep=1, at=nothing)
    assert again.newest().step == (2 if step in ("renamed", "prune") else 1)
    _commit(again, 3)
    assert again.names() == ["step-00000003"]


def test_other_files_beside_the_checkpoints_are_left_alone(store):
    store.storage.root.mkdir()
    for name in ("notes.txt", "step-12", "step-00000009.bak"):
        (store.storage.root / name).write_text("mine")
    _commit(store, 1)
    assert store.newest().step == 1
    assert (store.storage.root / "notes.txt").read_text() == "mine"
