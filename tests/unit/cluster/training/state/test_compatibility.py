"""Settings that do not fit a checkpoint's towers, rows or positions are refused by name before Ray starts."""

from dataclasses import asdict, replace

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.towers import load_towers, save_towers
from cluster.config import FreshetConfig, TrainConfig
from cluster.launching import launcher
from cluster.training.state.compatibility import require_resumable
from model.cl_epidtn import cl_epidtn
from model.config import ModelConfig
from streaming.config import StreamConfig

MODEL = ModelConfig(dim=16, layers=1, heads=2, augmented_dim=8, history_length=10)


def _trained(tmp_path, **sections):
    config = FreshetConfig(storage_path=str(tmp_path), **({"model": MODEL} | sections))
    store = CheckpointStore(tmp_path / "checkpoints")
    writing = store.begin(7)
    files = [writing.write("towers.safetensors", b"not read here")]
    return store.commit(writing, files, {"config": asdict(config)}), config


CHANGES = {
    "dim": 32,
    "members": 2,
    "layers": 2,
    "heads": 4,
    "history_length": 12,
    "augmented_dim": 4,
    "source_items": 5,
    "source_categories": False,
    "transformer": False,
    "augmented_vectors": False,
    "user_id_embedding": False,
    "state_skip": 0.0,
    "similarity": "dot",
    "loss": "pointwise",
    "dropout": 0.3,
    "max_categories": 4,
    "uniform_negatives": 7,
    "contrastive_weight": 0.0,
    "negative_sequence": "older_half",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_is_refused_exactly_if_the_towers_could_not_be_loaded(tmp_path, name):
    checkpoint, config = _trained(tmp_path)
    changed = replace(MODEL, **{name: CHANGES[name]})
    save_towers(tmp_path, cl_epidtn(MODEL, 3), None)
    try:
        load_towers(tmp_path / "towers.safetensors", cl_epidtn(changed, 3))
        loads = True
    except CheckpointError:
        loads = False
    if loads:
        require_resumable(checkpoint, replace(config, model=changed))
        return
    with pytest.raises(CheckpointError) as refused:
        require_resumable(checkpoint, replace(config, model=changed))
    before, now = getattr(MODEL, name), CHANGES[name]
    assert f"was trained with model.{name}={before}, this run has model.{name}={now}; set it so" in str(
        refused.value
    )
    assert "\n" not in str(refused.value)


def test_of_several_settings_those_are_named_that_make_the_difference(tmp_path):
    checkpoint, config = _trained(tmp_path)
    changed = replace(MODEL, dim=24, heads=3, dropout=0.4)
    with pytest.raises(
        CheckpointError, match=r"with model.dim=16 and model.heads=2, this run has model.dim=24 and model"
    ):
        require_resumable(checkpoint, replace(config, model=changed))


def test_attributes_and_history_may_change_where_the_restore_allows_it(tmp_path):
    checkpoint, config = _trained(tmp_path)
    require_resumable(checkpoint, replace(config, stream=StreamConfig(user_attributes=["x"], seen_length=5)))


def test_the_row_optimizer_and_what_positions_mean_must_stay(tmp_path):
    files = StreamConfig(parquet="a", parquet_partitions=4)
    checkpoint, config = _trained(tmp_path, stream=files)
    require_resumable(checkpoint, replace(config, stream=replace(files, parquet="moved")))
    for section, told in (
        (
            {"train": TrainConfig(row_optimizer="adagrad")},
            "train.row_optimizer=adam, this run has train.row_opt",
        ),
        ({"stream": replace(files, parquet_partitions=5)}, "stream.parquet_partitions=4, this run has"),
        ({"stream": StreamConfig()}, "stream.parquet=a, this run has stream.parquet=;"),
    ):
        with pytest.raises(CheckpointError, match=told):
            require_resumable(checkpoint, replace(config, **section))


def test_a_setting_that_the_checkpoint_does_not_know_is_not_asked_for(tmp_path):
    checkpoint, config = _trained(tmp_path)
    del checkpoint.manifest["config"]["train"]["row_optimizer"]
    checkpoint.manifest["config"]["model"]["gone"] = 1
    del checkpoint.manifest["config"]["model"]["members"]
    require_resumable(checkpoint, config)


def test_train_and_refresh_refuse_before_ray_starts(tmp_path, monkeypatch):
    _, config = _trained(tmp_path)
    monkeypatch.setattr(launcher, "_fit", lambda *arguments, **options: pytest.fail("Ray was started"))
    monkeypatch.setattr(launcher, "require_inputs", lambda stream: None)
    other = replace(config, model=replace(MODEL, dim=32), device=torch.device("cpu").type)
    for run in (launcher.run_training, launcher.run_refresh):
        with pytest.raises(CheckpointError, match=r"model\.dim=16, this run has model\.dim=32"):
            run(other)
