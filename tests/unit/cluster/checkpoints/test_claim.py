"""Two worker groups on one storage: the one that claimed it last commits, the other stops."""

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageTaken, claimed_by_run
from cluster.config import FreshetConfig, TrainConfig
from retrieval.storage.base import nothing
from retrieval.storage.opening import open_storage


def _write(store, step):
    writing = store.begin(step)
    return writing, [writing.write_tensors("towers.safetensors", {"w": torch.full((2,), float(step))})]


def _store(root, run_id):
    """A group of a run that began just now, whoever was there before."""
    store = CheckpointStore(root, keep=1)
    _begin(root, run_id)
    store.join(run_id)
    return store


def _begin(root, run_id):
    with claimed_by_run(open_storage(root), run_id, take_over=True):
        pass


def _group(root, run_id, at=nothing):
    """A later group of a run, as Ray Train starts it."""
    store = CheckpointStore(root, at=at)
    store.join(run_id)
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
    older, _ = _store(place, "one"), _group(place, "one")
    with pytest.raises(StorageTaken, match="a later group of this run") as taken:
        older.check_claim()
    assert taken.value.by == "one"


@pytest.mark.parametrize("step", ["manifest", "rename"])
def test_a_claim_in_the_middle_of_a_commit_leaves_nothing_to_see(place, step):
    def claim_meanwhile(now):
        if now == step:
            _store(place, "wednesday")

    _begin(place, "tuesday")
    older = _group(place, "tuesday", at=claim_meanwhile)
    with pytest.raises(OSError, match="No such file"):
        older.commit(*_write(older, 1), {})
    assert CheckpointStore(place).names() == []
    assert {path.name for path in place.iterdir()} == {"claim.json", "claims"}


def test_a_claim_just_after_a_commit_goes_on_from_it(place):
    def claim_meanwhile(now):
        if now == "renamed":
            _store(place, "wednesday")

    _begin(place, "tuesday")
    older = _group(place, "tuesday", at=claim_meanwhile)
    committed = older.commit(*_write(older, 1), {})
    assert CheckpointStore(place).newest().name == committed.name


def test_without_a_claim_of_ones_own_or_after_tidying_up_nothing_is_refused(place):
    unclaimed = CheckpointStore(place)
    owner = _store(place, "tuesday")
    unclaimed.commit(*_write(unclaimed, 1), {})  # type: ignore[call-arg]
    (place / "claim.json").unlink()
    owner.commit(*_write(owner, 2), {})
    assert owner.newest().step == 2


def test_a_group_of_an_evicted_run_that_ray_starts_again_takes_nothing_back(place):
    _store(place, "tuesday").commit(*_write(CheckpointStore(place), 1), {})
    newer = _store(place, "wednesday")
    writing, files = _write(newer, 2)
    with pytest.raises(StorageTaken, match="run wednesday"):
        _group(place, "tuesday")
    assert newer.commit(writing, files, {}).step == 2
    newer.check_claim()


def test_the_claim_of_an_earlier_version_is_succeeded(place):
    place.mkdir()
    (place / "claim.json").write_text('{"run_id": "old", "token": "1"}')
    with pytest.raises(StorageTaken, match="run old"):
        _group(place, "new")
    with claimed_by_run(open_storage(place), "new"):
        _group(place, "new").check_claim()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_claim_that_cannot_be_understood_is_nobodys(place, content):
    place.mkdir()
    (place / "claim.json").write_text(content)
    _group(place, "one").check_claim()


def test_a_run_whose_storage_path_was_taken_over_stops_though_its_checkpoints_lie_elsewhere(tmp_path, place):
    config = FreshetConfig(
        storage_path=str(tmp_path), train=TrainConfig(checkpoint_path=str(tmp_path / "own"))
    )
    assert config.claimed_locations == [str(place), str(tmp_path / "own")]
    older = CheckpointStore(config.checkpoint_location, claimed=config.claimed_locations)
    for location in config.claimed_locations:
        _begin(location, "tuesday")
    older.join("tuesday")
    older.commit(*_write(older, 1), {})  # type: ignore[call-arg]
    _begin(place, "wednesday")
    for act in (older.check_claim, lambda: older.begin(2)):
        with pytest.raises(StorageTaken, match=r"taken over by run wednesday"):
            act()


def test_index_versions_that_lie_elsewhere_are_claimed_too(tmp_path, place):
    config = FreshetConfig(storage_path=str(tmp_path), train=TrainConfig(index_path=str(tmp_path / "index")))
    assert config.claimed_locations == [str(place), str(tmp_path / "index")]
