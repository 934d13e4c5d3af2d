"""Settings in checkpoints of earlier versions are read under their present names."""

import json
from dataclasses import asdict

import pytest

from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.config import FreshetConfig, ProgressiveConfig
from cluster.training.state.compatibility import flat, require_resumable
from retrieval.storage.durable import manifest_checksum
from tests.support.checkpoint_recommender import config_of

CONFIG = FreshetConfig(progressive=ProgressiveConfig(top_k=7, sample_fraction=0.5))


def _written_before_the_rename(tmp_path, config):
    store = CheckpointStore(tmp_path / "checkpoints")
    saved = asdict(config)
    saved["evaluation"] = saved.pop("progressive")
    return store.commit(store.begin(1), [], {"config": saved})


@pytest.fixture
def reopened(tmp_path):
    return open_checkpoint(_written_before_the_rename(tmp_path, CONFIG).path)


def test_the_renamed_section_has_its_present_name_and_its_values(reopened):
    settings = flat(reopened.manifest["config"])
    assert settings["progressive.top_k"] == 7
    assert not any(key.startswith("evaluation.") for key in settings)
    assert config_of(reopened).progressive == CONFIG.progressive


def test_the_file_keeps_the_old_name_and_its_own_checksum(reopened):
    content = json.loads((reopened.path / "manifest.json").read_text())
    assert content["config"]["evaluation"]["top_k"] == 7
    assert content["checksum"] == reopened.manifest["checksum"] == manifest_checksum(content)


def test_a_run_continues_from_it(reopened):
    require_resumable(reopened, CONFIG)
