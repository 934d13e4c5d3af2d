"""Commit, choose, verify, prune: what a crash or a flipped bit leaves behind."""

import json
import logging
import re

import pyarrow as pa
import pytest
import torch

from cluster.checkpoints.arrays import read_table, read_tensors
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.manifest import CheckpointError, UnknownFormatError
from retrieval.storage.base import CHECKPOINTS, nothing
from retrieval.storage.durable import manifest_checksum


def _commit(store, step, content=1.0, parent=None):
    writing = store.begin(step)
    files = [
        writing.write_tensors("towers.safetensors", {"w": torch.full((5, 3), content)}),
        writing.write_table("rows-0000-4096.arrow", pa.table({"id": [step, step + 1]})),
    ]
    checkpoint = store.commit(writing, files, {"positions": {"0": [step, 0]}}, parent)
    store.prune(checkpoint)
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
def test_a_manifest_that_is_not_signed_is_refused_as_damaged_whatever_it_says(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"{tmp_path} is damaged: manifest.json"):
        open_checkpoint(tmp_path)


def _of_format(checkpoint, version, sign=True):
    """What another version of this project might have written."""
    changed = dict(checkpoint.manifest) | {"format": version}
    if sign:
        changed["checksum"] = manifest_checksum(changed)
    (checkpoint.path / "manifest.json").write_text(json.dumps(changed, indent=1))


@pytest.mark.parametrize("version", [99, "3b", [2], None])
def test_a_whole_checkpoint_of_an_unknown_format_is_refused_and_nothing_older_taken_in_its_place(
    store, version
):
    _commit(store, 1)
    newest = _commit(store, 2)
    _of_format(newest, version)
    says = rf"step-00000002 has checkpoint format {re.escape(repr(version))}, this version reads 1, 2: use the version"
    for read in (store.newest, lambda: store.open(newest.name), lambda: open_checkpoint(newest.path)):
        with pytest.raises(UnknownFormatError, match=says) as refused:
            read()
        assert "\n" not in str(refused.value)
    with pytest.raises(UnknownFormatError, match="that wrote it, or point storage_path elsewhere"):
        store.newest()


def test_of_an_unknown_format_by_a_flipped_bit_only_the_one_before_is_taken(store, caplog):
    _commit(store, 1)
    _of_format(_commit(store, 2), 3, sign=False)
    assert store.newest().step == 1
    assert "step-00000002 is damaged: manifest.json does not match its own checksum" in caplog.text


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


def _damage(checkpoint, name="rows-0000-4096.arrow", how=_flip_a_bit):
    how(checkpoint.path / name)


def _gone_on(place, keep, *steps, parent=True):
    """What another run finds and goes on from, in a process of its own, and what it then commits."""
    store = CheckpointStore(place, keep=keep)
    found = store.newest()
    last = found if parent else None
    for step in steps:
        last = _commit(store, step, parent=last)
    return found, last


def _numbers(place):
    return [CHECKPOINTS.order_of(name) for name in CheckpointStore(place).names()]


@pytest.mark.parametrize("first", [15, 20, 25, 60])
@pytest.mark.parametrize("keep", [1, 3])
def test_what_a_run_fell_back_to_is_kept_and_the_line_it_gave_up_goes_with_the_next_commit(
    tmp_path, caplog, keep, first
):
    _damage(_chain(CheckpointStore(tmp_path, keep=keep), 10, 20, 30, 40, 50)[1])
    found, _ = _gone_on(tmp_path, keep, first)
    assert found.step == 10
    assert _numbers(tmp_path) == [(10, 0), (first, 1 if first == 20 else 0)]
    assert "step-00000050 is not an ancestor of step-000000" in caplog.text
    caplog.clear()
    found, last = _gone_on(tmp_path, keep, first + 1, first + 2)
    assert (found.step, caplog.messages) == (first, [])
    newest = CheckpointStore(tmp_path, keep=keep).newest()
    assert newest.name == last.name
    assert [link.step for link in newest.links] == [10, first, first + 1, first + 2]


@pytest.mark.parametrize("how", [_truncate, _flip_a_bit])
@pytest.mark.parametrize("name", ["manifest.json", "towers.safetensors"])
@pytest.mark.parametrize("keep", [1, 3])
def test_damage_to_the_newest_alone_never_costs_the_one_before_it(tmp_path, keep, name, how):
    _damage(_chain(CheckpointStore(tmp_path, keep=keep), 10, 20)[1], name, how)
    for step in (15, 30):
        _gone_on(tmp_path, keep, step)
        newest = CheckpointStore(tmp_path).newest()
        assert [link.step for link in newest.links] == ([10, 15] if step == 15 else [10, 15, 30])
    assert _numbers(tmp_path) == [(10, 0), (15, 0), (30, 0)]


def test_a_line_given_up_does_not_take_the_places_of_good_checkpoints(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30, 40):
        _commit(store, step)
    for step in (30, 40):
        _damage(store.open(f"step-{step:08d}"))
    _, last = _gone_on(tmp_path, 2, 35, parent=False)
    assert _numbers(tmp_path) == [(20, 0), (35, 0)]
    assert last.manifest["follows"] == "step-00000020"
    _damage(last)
    assert CheckpointStore(tmp_path).newest().step == 20


@pytest.mark.parametrize("parent", [True, False])
def test_what_was_given_up_goes_too_when_the_run_dies_between_its_commit_and_the_removal(tmp_path, parent):
    """A later run no longer knows what its predecessor fell back behind: the manifests say it."""

    class Cut(BaseException):
        pass

    def cut(name):
        if name == "prune":
            raise Cut

    _damage(_chain(CheckpointStore(tmp_path), 10, 20, 30)[1])
    store = CheckpointStore(tmp_path, at=cut)
    found = store.newest()
    with pytest.raises(Cut):
        _commit(store, 25, parent=found if parent else None)
    assert _numbers(tmp_path) == [(10, 0), (20, 0), (25, 0), (30, 0)]
    found, _ = _gone_on(tmp_path, 3, 27)
    assert found.step == 25
    assert _numbers(tmp_path) == [(10, 0), (25, 0), (27, 0)]


def test_nothing_is_given_up_before_the_next_commit_stands(tmp_path):
    """Whoever mends the damage in time has the whole line again."""
    damaged = _chain(CheckpointStore(tmp_path, keep=1), 10, 20, 30)[1]
    _damage(damaged)
    store = CheckpointStore(tmp_path, keep=1)
    assert store.newest().step == 10
    store.begin(15)
    _damage(damaged)
    assert CheckpointStore(tmp_path, keep=1).newest().step == 30


def test_the_chain_of_what_was_just_committed_stays_when_a_manifest_in_it_is_damaged_meanwhile(tmp_path):
    """It is known from memory; that it is broken is for a reader to say, who then has the links before it."""
    store = CheckpointStore(tmp_path, keep=1)
    links = _chain(store, 10, 20)
    _damage(links[1], "manifest.json", _truncate)
    last = _commit(store, 30, parent=links[1])
    _damage(last, "manifest.json", _truncate)
    assert store.prune(last) == []
    assert _numbers(tmp_path) == [(10, 0), (20, 0), (30, 0)]
    assert CheckpointStore(tmp_path).newest().step == 10


def test_checkpoints_written_before_lines_were_noted_are_kept_as_before(tmp_path):
    def unnoted(checkpoint):
        changed = {k: v for k, v in checkpoint.manifest.items() if k not in ("follows", "checksum")}
        changed["checksum"] = manifest_checksum(changed)
        (checkpoint.path / "manifest.json").write_text(json.dumps(changed))

    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30):
        unnoted(_commit(store, step))
    _gone_on(tmp_path, 3, 40)
    assert _numbers(tmp_path) == [(20, 0), (30, 0), (40, 0)]


def test_other_files_beside_the_checkpoints_are_left_alone(store):
    store.storage.root.mkdir()
    for name in ("notes.txt", "step-12", "step-00000009.bak"):
        (store.storage.root / name).write_text("mine")
    _commit(store, 1)
    assert store.newest().step == 1
    assert (store.storage.root / "notes.txt").read_text() == "mine"
