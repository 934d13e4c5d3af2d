"""Deltas, bases copied during training, failing storage: a restored state is exactly that of one step."""

import errno
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.audit.state import difference, digest, read_state
from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.rows import load_rows
from cluster.checkpoints.writing import FullPolicy
from cluster.collectives import Collectives
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.state.worker_state import checkpointer_of
from tests.support.checkpointing import save_checkpoint
from tests.support.state_digests import digests
from tests.support.unit_runs import small_run, train_steps

FORMAT_1 = Path(__file__).parents[3] / "data" / "checkpoint-format-1"


pytestmark = pytest.mark.usefixtures("one_thread")


def _finished(checkpointer, run):
    return checkpointer.finish(run.step)


def _saved_whole(run, folder):
    """The digests of the run's state, as a full checkpoint elsewhere has it."""
    generator = torch.get_rng_state()
    found = digests(read_state(save_checkpoint(run, CheckpointStore(folder), Collectives())))
    torch.set_rng_state(generator)
    return found


def test_a_chain_of_deltas_holds_what_a_full_checkpoint_of_the_same_step_holds(store, tmp_path):
    run = small_run(dropout=0.3)
    checkpointer = checkpointer_of(run, store, Collectives())
    checkpointer._policy = FullPolicy(every=3, share=10.0)
    kinds = []
    for number in range(3):
        train_steps(run, 2)
        committed = _finished(checkpointer, run)
        kinds.append(committed.manifest["kind"])
        twin = small_run(committed, dropout=0.3)
        assert digests(read_state(committed)) == _saved_whole(twin, tmp_path / f"whole-{number}")
    checkpointer.close()
    assert kinds == ["full", "delta", "delta"]
    assert [len(link.files("rows-")) for link in committed.links] == [1, 2, 3]


def test_a_run_goes_on_from_a_chain_with_dropout_as_if_it_had_not_stopped(store):
    run = small_run(dropout=0.3)
    checkpointer = checkpointer_of(run, store, Collectives())
    for _ in range(3):
        train_steps(run, 2)
        committed = _finished(checkpointer, run)
    train_steps(run, 3)
    whole = read_state(_finished(checkpointer, run))
    torch.manual_seed(99)
    resumed = small_run(committed, dropout=0.3)
    again = checkpointer_of(resumed, store, Collectives(), committed)
    train_steps(resumed, 3)
    assert digests(read_state(_finished(again, resumed))) == digests(whole)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_trained_while_a_base_is_copied_the_checkpoint_is_of_one_step(
    store, tmp_path, monkeypatch, seed
):
    """Slices of a few rows and users, in a random interleaving with steps."""
    monkeypatch.setattr("cluster.checkpoints.parts.rows._SLICE_BYTES", 1)
    monkeypatch.setattr("cluster.checkpoints.parts.users._USERS_AT_ONCE", 3)
    monkeypatch.setattr("cluster.checkpoints.parts.pairs._PAIRS_AT_ONCE", 11)
    monkeypatch.setattr("cluster.checkpoints.writing._SLICES_AHEAD", 2)
    monkeypatch.setattr("cluster.checkpoints.parts.rows._LEAST_ROWS", 5)
    rng = np.random.default_rng(seed)
    run = small_run(dropout=0.3)
    checkpointer = checkpointer_of(run, store, Collectives())
    checkpointer._policy = FullPolicy(every=1)
    train_steps(run, 2)
    committed, expected = [], None
    while len(committed) < 2:
        if checkpointer.idle:
            checkpointer.begin(run.step)
            if checkpointer._now.told is not None:
                expected = _saved_whole(run, tmp_path / f"whole-{len(committed)}")
        if checkpointer.ready:
            had = checkpointer._now.told
            done = checkpointer.advance()
            if done is not None:
                committed.append(done)
                assert digests(read_state(done)) == expected
            elif had is None:
                expected = _saved_whole(run, tmp_path / f"whole-{len(committed)}")
        checkpointer.copy_some(rng.exponential(0.0005))
        if rng.random() < 0.3 and run.step < 14:
            train_steps(run, 1)
        time.sleep(0.001)
    checkpointer.close()
    assert [c.manifest["kind"] for c in committed] == ["full", "delta"]
    assert (committed[0].step > 2) is bool(committed[0].has("rows-0000-4096.changes.arrow"))


@pytest.mark.parametrize("most_rounds", [1, 4])
def test_much_that_has_changed_is_copied_in_slices_and_the_delta_is_of_one_step(
    store, tmp_path, monkeypatch, most_rounds
):
    """Rounds of slices while steps train and remove what the slices hold, until `most_rounds` have been made."""
    monkeypatch.setattr("cluster.checkpoints.parts.rows._SLICE_BYTES", 1)
    monkeypatch.setattr("cluster.checkpoints.parts.rows._LEAST_ROWS", 5)
    monkeypatch.setattr("cluster.checkpoints.parts.users._USERS_AT_ONCE", 3)
    monkeypatch.setattr("cluster.checkpoints.writing._AT_ONCE_BYTES", 0)
    monkeypatch.setattr("cluster.checkpoints.writing._MOST_ROUNDS", most_rounds)
    rng = np.random.default_rng(1)
    run = small_run(dropout=0.3)
    train_steps(run, 6)
    row_before, row_between = ((np.zeros(1, np.int16), np.array([key])) for key in (9001, 9002))
    run.table.add(*row_before)
    run.table.add(*row_between)
    checkpointer = checkpointer_of(run, store, Collectives())
    full = _finished(checkpointer, run)
    train_steps(run, 2)
    user_before, user_between = run.users.users()[:2]
    run.users.remove(user_before[None])
    run.table.remove(*row_before)
    checkpointer.begin(run.step)
    run.users.remove(user_between[None])
    run.table.remove(*row_between)
    delta = None
    while delta is None:
        if checkpointer.ready:
            train_steps(run, 1 if run.step < 15 else 0)  # so that another round has something to copy
            before = checkpointer._now.told
            delta = checkpointer.advance()
            if before is None and checkpointer._now.told is not None:
                expected = _saved_whole(run, tmp_path / "whole")
        checkpointer.copy_some(rng.exponential(0.0005))
        if run.step < 11 and rng.random() < 0.3:
            train_steps(run, 1)
        time.sleep(0.001)
    checkpointer.close()
    names = {entry["name"] for entry in delta.manifest["files"]}
    assert (full.manifest["kind"], delta.manifest["kind"]) == ("full", "delta")
    assert f"rows-0000-4096.base{most_rounds}.arrow" in names
    assert f"rows-0000-4096.base{most_rounds + 1}.arrow" not in names
    assert any(name.endswith(".base1.arrow") and name.startswith("users-") for name in names)
    removed = read_table(delta.file("rows-0000-4096.removed.arrow"))
    assert {9001, 9002} <= set(removed["id"].to_pylist())
    assert digests(read_state(delta)) == expected
    assert digests(read_state(delta)) == _saved_whole(small_run(delta, dropout=0.3), tmp_path / "again")


def test_users_who_were_removed_are_gone_from_the_next_delta_and_may_come_back(store):
    run = small_run()
    train_steps(run, 4)
    checkpointer = checkpointer_of(run, store, Collectives())
    _finished(checkpointer, run)
    users = run.users.users()
    gone, back = users[:3], users[3:4]
    count = int(run.users.counts(back)[0])
    run.users.remove(users[:4])
    # The one who is back has as many events as before: a count alone would not show it.
    key = run.users.key_hashes(back)
    run.users.append(back, key, np.array([0, count]), np.arange(count), np.arange(count))
    delta = _finished(checkpointer, run)
    found = {row["user_id"]: row for t in read_state(delta).users.values() for row in t.to_pylist()}
    assert not found.keys() & set(gone.tolist())
    assert found[int(back[0])]["items"] == list(range(count))
    assert set(users[4:].tolist()) <= found.keys()


def test_rows_that_were_removed_stay_away_unless_they_come_back(tmp_path, store):
    table = ShardedEmbedding(4, Collectives(), row_optimizer("adam"), seed=1, device=torch.device("cpu"))
    written = []

    def keys(*ids):
        return np.zeros(len(ids), np.int16), np.array(ids, np.int64)

    def write(name, *, rows=(), removed=None):
        source = ShardedEmbedding(4, Collectives(), row_optimizer("adam"), seed=1, device=torch.device("cpu"))
        source.add(*keys(*rows))
        source.values_CD[:] = float(name)
        from cluster.checkpoints.arrays import write_table
        from cluster.checkpoints.parts.rows import row_columns

        kind = "changes" if name else ""
        path = tmp_path / f"link-{name}"
        path.mkdir()
        file = path / f"rows-0000-4096{'.' + kind if kind else ''}.arrow"
        write_table(file, row_columns(source, source.rows()))
        written.append(file)
        if removed is not None:
            gone = path / "rows-0000-4096.removed.arrow"
            write_table(gone, pa.table(dict(zip(("table", "id"), keys(*removed), strict=True))))
            written.append(gone)

    write(0, rows=[1, 2, 3, 4])
    write(1, rows=[5], removed=[1, 2])
    write(2, rows=[2, 3], removed=[5])
    load_rows(written, table, 0, 1)
    _, ids = table.keys_of(table.rows())
    value = dict(zip(ids.tolist(), table.values_CD[table.rows(), 0].tolist(), strict=True))
    assert value == {2: 2.0, 3: 2.0, 4: 0.0}


def test_a_full_disk_costs_the_checkpoint_but_not_the_run_and_the_next_one_is_full(store, tmp_path, caplog):
    run = small_run()
    train_steps(run, 2)
    full = {"on": False}

    def disk(step):
        if full["on"] and step in ("write", "manifest"):
            raise OSError(errno.ENOSPC, "No space left on device")

    store._at = disk
    checkpointer = checkpointer_of(run, store, Collectives(), at=disk)
    first = _finished(checkpointer, run)
    full["on"] = True
    train_steps(run, 1)
    with pytest.raises(CheckpointError, match=r"last checkpoint could not be written.*checkpoint_path"):
        _finished(checkpointer, run)
    assert "No space left on device" in caplog.text
    assert store.newest().name == first.name
    full["on"] = False
    train_steps(run, 1)
    assert _finished(checkpointer, run).manifest["kind"] == "full"
    assert {p.name[:5] for p in store.storage.root.iterdir()} == {"step-"}
    checkpointer.close()


def test_a_bug_in_the_thread_is_no_full_disk_and_ends_the_run(store):
    run = small_run()

    def bug(step):
        if step == "write":
            raise KeyError("a bug")

    checkpointer = checkpointer_of(run, store, Collectives(), at=bug)
    with pytest.raises(KeyError, match="a bug"):
        _finished(checkpointer, run)


@pytest.mark.parametrize(
    ("sizes", "wants"), [([100], False), ([100, 30], False), ([100, 30, 30], True), ([900, 1, 1, 1], True)]
)
def test_a_chain_ends_with_its_share_of_bytes_or_its_number_of_deltas(store, sizes, wants):
    parent = None
    for step, size in enumerate(sizes):
        writing = store.begin(step)
        parent = store.commit(writing, [writing.write("rows-0000-4096.arrow", bytes(size))], {}, parent)
    policy = FullPolicy(every=3, share=0.5)
    assert policy.wants_full(parent) is wants
    assert policy.wants_full(None)
    assert FullPolicy(every=0).wants_full(parent)


def test_a_checkpoint_of_format_1_is_read_and_a_delta_builds_on_it(tmp_path):
    """Written by version 0.1.0 of this project at its step 3; the files are its own."""
    shutil.copytree(FORMAT_1, tmp_path / "step-00000003")
    old = open_checkpoint(tmp_path / "step-00000003")
    state = read_state(old)
    assert (old.step, old.manifest["format"], old.manifest["kind"]) == (3, 2, "full")
    run = small_run(old, dropout=0.3, dim=4, augmented_dim=2, with_actions=True)
    assert (run.step, run.events_trained) == (3, old.manifest["events_trained"])
    assert len(run.table) == state.rows.num_rows > 50
    train_steps(run, 2)
    store = CheckpointStore(tmp_path)
    delta = _finished(checkpointer_of(run, store, Collectives(), old), run)
    assert [link.name for link in store.newest().links] == ["step-00000003", delta.name]
    assert read_state(delta).rows.num_rows >= state.rows.num_rows


def test_a_difference_says_which_rows_towers_users_positions_and_settings_are_other(store):
    run = small_run()
    train_steps(run, 2)
    checkpointer = checkpointer_of(run, store, Collectives())
    old = read_state(_finished(checkpointer, run))
    assert difference(old, old)["identical"]
    assert not any(change["changed"] for change in difference(old, old)["rows"].values())
    train_steps(run, 2)
    run.config = replace(run.config, seed=77)
    new = read_state(_finished(checkpointer, run))
    found = difference(old, new)
    assert not found["identical"]
    assert digest(old) != digest(new)
    assert found["counters"]["step"] == [2, 4]
    assert found["settings"] == {"seed": [1, 77]}
    assert found["positions"]["0"] == [[32, 0], [64, 0]]
    assert sum(change["added"] for change in found["rows"].values()) == new.rows.num_rows - old.rows.num_rows
    assert found["rows"]["0"]["largest_change"] > 0
    assert all(change > 0 for change in found["towers"].values())
    assert found["users"]["changed"] > 0
