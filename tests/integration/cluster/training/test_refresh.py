"""A refresh by any number of ranks gives the same version: item vectors, centroids, lists, and answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.publishing.item_encoding import encode_owned_items
from cluster.serving.recommender import Recommender
from cluster.training.refresh import refresh_from
from cluster.training.state.worker_state import checkpointer_of
from retrieval.versions.item_vectors import read_item_vectors
from tests.support.ranks import run_on_ranks
from tests.support.unit_runs import open_run, small_config, train_steps

ITEMS = 3000
HISTORIES = ([1], [7, 3, 12], [40, 2, 9, 30, 11, 5])


def _config(folder):
    config = replace(small_config(), storage_path=str(folder))
    config.train = replace(
        config.train, checkpoint_path=str(folder.parent / "checkpoints"), checkpoint_full_share=1e9
    )
    return config


def _refresh(rank, config, place):
    refresh_from(
        config,
        Collectives(),
        torch.device("cpu"),
        checkpoint_path=place,
        report_path=Path(config.storage_path) / "report.json",
    )


def _chain(config):
    """A run, and its newest checkpoint: a full one and two deltas."""
    run = open_run(config)
    run.catalogue.add_items(np.arange(10_000, 10_000 + ITEMS))
    writer = checkpointer_of(run, CheckpointStore(config.checkpoint_location), Collectives())
    for _ in range(3):
        train_steps(run, 3)
        checkpoint = writer.finish(run.step)
    writer.close()
    assert len(checkpoint.links) == 3
    return run, checkpoint


def _vectors(config):
    table = read_item_vectors(config.index_location)
    order = np.argsort(table["item_id"].to_numpy())
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    return table["item_id"].to_numpy()[order], flat.reshape(len(order), -1)[order]


def test_one_two_and_three_ranks_publish_the_same_version_and_it_serves_the_state_of_the_checkpoint(tmp_path):
    run, checkpoint = _chain(_config(tmp_path / "one"))
    configs = [_config(tmp_path / name) for name in ("one", "two", "three")]
    for world, config in enumerate(configs, start=1):
        (tmp_path / config.storage_path).mkdir(exist_ok=True)
        run_on_ranks(_refresh, world, config, checkpoint.location)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two", "three")]
    assert [report["version"] for report in reports] == ["v00000001"] * 3
    assert [report["known_items"] for report in reports] == [run.catalogue.item_count] * 3
    same = ("items", "nlist", "nprobe", "recall", "scanned", "gate")
    assert [[report[name] for name in same] for report in reports] == [[reports[0][n] for n in same]] * 3
    ids, vectors = _vectors(configs[0])
    trained_ids, trained = encode_owned_items(run.model, run.table, run.catalogue, Collectives())
    order = np.argsort(trained_ids)
    assert ids.tolist() == trained_ids[order].tolist()
    np.testing.assert_allclose(vectors, trained.numpy()[order], atol=1e-6)
    recommenders = [Recommender(config) for config in configs]
    for config, recommender in zip(configs, recommenders, strict=True):
        found = _vectors(config)
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], vectors)
        answers = [recommender.answer(history=history, k=5).items for history in HISTORIES]
        assert answers == [recommenders[0].answer(history=history, k=5).items for history in HISTORIES]
