"""`train.init_from` names a checkpoint, a run or its checkpoints; what does not fit is refused in one line."""

from dataclasses import asdict, replace

import pytest

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.config import FreshetConfig, TrainConfig
from cluster.training.state.starting_point import find_starting_point
from model.config import ModelConfig
from streaming.config import StreamConfig


def _commit(run, step, config=None):
    store = CheckpointStore(run / "checkpoints")
    writing = store.begin(step)
    files = [writing.write("towers.safetensors", b"not read here")]
    return store.commit(writing, files, {"config": asdict(config or FreshetConfig())}).path


def _config(start, **sections):
    return replace(FreshetConfig(train=TrainConfig(init_from=str(start))), **sections)


def _refusal(config):
    with pytest.raises(CheckpointError, match=r"train\.init_from") as refused:
        find_starting_point(config)
    assert "\n" not in str(refused.value)
    assert "storage_path" not in str(refused.value)
    return str(refused.value)


def test_without_the_setting_there_is_nothing_to_start_from():
    assert find_starting_point(FreshetConfig()) is None


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/step-00000007"])
def test_a_run_its_checkpoints_and_a_checkpoint_can_be_named(tmp_path, inside):
    _commit(tmp_path, 3)
    newest = _commit(tmp_path, 7)
    found = find_starting_point(_config(tmp_path / inside))
    assert (found.path, found.step) == (newest, 7)


def test_an_older_checkpoint_can_be_named(tmp_path):
    older = _commit(tmp_path, 3)
    _commit(tmp_path, 7)
    assert find_starting_point(_config(older)).step == 3


def test_of_a_run_the_newest_checkpoint_that_verifies_is_taken(tmp_path):
    _commit(tmp_path, 3)
    (_commit(tmp_path, 7) / "towers.safetensors").write_bytes(b"NOT read here")
    assert find_starting_point(_config(tmp_path)).step == 3


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    assert f"{tmp_path} holds no checkpoint" in _refusal(_config(tmp_path))
    assert "is not a folder" in _refusal(_config(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    assert "is not a folder" in _refusal(_config(tmp_path / "file"))


@pytest.mark.parametrize("inside", ["", "checkpoints/step-00000007"])
def test_a_damaged_checkpoint_is_refused_by_its_file(tmp_path, inside):
    (_commit(tmp_path, 7) / "towers.safetensors").write_bytes(b"NOT read here")
    assert "towers.safetensors does not match" in _refusal(_config(tmp_path / inside))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": ModelConfig(dim=32)}, "model.dim=64, this run has model.dim=32"),
        ({"model": ModelConfig(transformer=False)}, "model.transformer=True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_sizes_are_refused_by_the_setting_with_both_values(tmp_path, sections, message):
    _commit(tmp_path, 7)
    assert message in _refusal(_config(tmp_path, **sections))


def test_another_row_optimizer_is_refused_by_its_setting(tmp_path):
    _commit(tmp_path, 7)
    train = TrainConfig(init_from=str(tmp_path), row_optimizer="adagrad")
    assert "train.row_optimizer=adam, this run has" in _refusal(replace(FreshetConfig(), train=train))


def test_settings_of_the_training_and_attributes_may_differ(tmp_path):
    _commit(tmp_path, 7)
    model, stream = ModelConfig(dropout=0.4, temperature=0.2), StreamConfig(user_attributes=["age"])
    assert find_starting_point(_config(tmp_path, model=model, stream=stream, seed=9)).step == 7
