"""Item vectors, queries and versions from towers and rows on the device."""

import json

import numpy as np
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.publishing.item_encoding import encode_owned_items
from cluster.publishing.publisher import Publisher
from cluster.serving.recommender import Recommender
from cluster.training.refresh import refresh_from
from retrieval.versions.searcher import Searcher
from tests.support.checkpointing import save_checkpoint
from tests.support.device_runs import config_of, train_and_score
from tests.support.unit_runs import CPU, encode_users, open_run


def _trained(gpu, tmp_path):
    """A run on the device, and the same on the CPU."""
    config = config_of("the defaults")
    config.storage_path = str(tmp_path)
    run = open_run(config, device=gpu.device)
    train_and_score(run, 3)
    checkpoint = save_checkpoint(run, CheckpointStore(config.checkpoint_location), Collectives())
    return run, open_run(config, checkpoint, device=CPU), checkpoint


def test_item_and_query_vectors_are_those_of_the_cpu(gpu, tmp_path):
    there, here, _ = _trained(gpu, tmp_path)
    ids, vectors = encode_owned_items(there.model, there.table, there.catalogue, Collectives())
    wanted_ids, wanted = encode_owned_items(here.model, here.table, here.catalogue, Collectives())
    assert ids.tolist() == wanted_ids.tolist()
    torch.testing.assert_close(vectors.cpu(), wanted)
    users = np.arange(1, 31)
    np.testing.assert_allclose(encode_users(there, users), encode_users(here, users), atol=1e-5)


def test_a_version_is_published_and_serves(gpu, tmp_path):
    run, _, checkpoint = _trained(gpu, tmp_path)
    publisher = Publisher(Collectives(), run.config, gpu.device)
    publisher.start(checkpoint, run.progressive.recent_queries, 50)
    publisher.wait()
    assert publisher.last.version is not None
    assert publisher.last.recall == pytest.approx(1.0)
    assert len(Recommender(run.config).recommend(history=[1, 2, 3], k=5)) == 5


def test_a_refresh_from_a_checkpoint_encodes_on_the_device(gpu, tmp_path):
    run, _, checkpoint = _trained(gpu, tmp_path)
    report = tmp_path / "report.json"
    refresh_from(
        run.config, Collectives(), gpu.device, checkpoint_path=checkpoint.location, report_path=report
    )
    assert json.loads(report.read_text())["version"] == Searcher(tmp_path / "index").version.name
