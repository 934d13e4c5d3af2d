"""Two groups of workers on one storage: who claimed it last commits, the other stops."""

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageTaken


def _write(store, step):
    writing = store.begin(step)
    return writing, [writing.write_tensors("towers.safetensors", {"w": torch.full((2,), float(step))})]


def _store(root, run_id):
    store = CheckpointStore(root, keep=1)
    store.take_over(run_id)
    return store


@pytest.fixture
def place(tmp_path):
    return tmp_path / "checkpoints"


def test_who_was_taken_over_neither_begins_nor_commits_and_is_told_by_whom(place):
    older = _store(place, "tuesday")
    first = older.commit(*_write(older, 1), {})
    writing, files = _write(older, 2)
    newer = _store(place, "wednesday")
    for act in (lambda: older.begin(3), lambda: older.commit(writing, files, {})):
        with pytest.raises(StorageTaken, match=r"taken over by run wednesday.*storage_path") as taken:
            act()
        assert taken.value.by == "wednesday"
    assert newer.newest().name == first.name
    assert newer.commit(*_write(newer, 2), {}).step == 2


def test_a_later_group_of_the_same_run_takes_over_too(place):
    older, _ = _store(place, "one"), _store(place, "one")
    with pytest.raises(StorageTaken, match="a later group of this run") as taken:
        older.check_claim()
    assert taken.value.by == "one"


@pytest.mark.parametrize("step", ["manifest", "rename"])
def test_a_claim_in_the_middle_of_a_commit_leaves_nothing_to_see(place, step):
    def claim_meanwhile(now):
        if now == step:
            _store(place, "wednesday")

    older = CheckpointStore(place, at=claim_meanwhile)
    older.take_over("tuesday")
    with pytest.raises(OSError, match="No such file"):
        older.commit(*_write(older, 1), {})
    assert CheckpointStore(place).names() == []
    assert not [path for path in place.iterdir() if path.name != "claim.json"]


def test_a_claim_just_after_a_commit_goes_on_from_it(place):
    def claim_meanwhile(now):
        if now == "renamed":
            _store(place, "wednesday")

    older = CheckpointStore(place, at=claim_meanwhile)
    older.take_over("tuesday")
    committed = older.commit(*_write(older, 1), {})
    assert CheckpointStore(place).newest().name == committed.name


def test_without_a_claim_of_ones_own_or_after_tidying_up_nothing_is_refused(place):
    unclaimed = CheckpointStore(place)
    owner = _store(place, "tuesday")
    unclaimed.commit(*_write(unclaimed, 1), {})
    (place / "claim.json").unlink()
    owner.commit(*_write(owner, 2), {})
    assert owner.newest().step == 2
