"""A checkpoint's own settings, also those of a version that knew others."""

import json
from dataclasses import asdict, replace

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.config import FreshetConfig, TrainConfig
from model.config import ModelConfig
from retrieval.storage.opening import open_storage
from streaming.config import StreamConfig
from tests.support.checkpoint_recommender import config_of

CONFIG = FreshetConfig(
    stream=StreamConfig(user_attributes=["age"], history_length=7),
    model=ModelConfig(dim=8, similarity="dot"),
    train=TrainConfig(row_optimizer="adagrad", init_from="runs/a"),
    seed=4,
)


def _checkpoint(config):
    # As a manifest holds it.
    return Checkpoint(open_storage("nowhere"), "step-00000001", json.loads(json.dumps({"config": config})))


def test_the_settings_come_back_as_they_were():
    assert config_of(_checkpoint(asdict(CONFIG))) == CONFIG


def test_settings_that_are_no_more_are_left_out_and_new_ones_have_their_defaults():
    saved = asdict(CONFIG)
    saved["train"]["of_another_version"] = 1
    saved["another_section"] = {"x": 1}
    del saved["train"]["init_from"], saved["table"]
    assert config_of(_checkpoint(saved)) == replace(CONFIG, train=TrainConfig(row_optimizer="adagrad"))
