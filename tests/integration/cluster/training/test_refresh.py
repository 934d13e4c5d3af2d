"""A refresh by any number of ranks gives the same version: item vectors, centroids, lists, and answers."""

import ctypes
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.item_encoding import encode_owned_items
from cluster.serving.recommender import Recommender
from cluster.training.refresh import refresh_from
from cluster.training.state.worker_state import checkpointer_of
from model.config import ModelConfig
from retrieval.indexes import parts
from retrieval.versions.item_vectors import read_item_vectors
from tests.support.anonymous_memory import AnonymousPeak
from tests.support.large_checkpoint import write_large_checkpoint
from tests.support.ranks import run_on_ranks
from tests.support.unit_runs import open_run, small_config, train_steps

ITEMS = 3000
_M_MMAP_THRESHOLD = -3  # mallopt(3)
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


def _large(folder, items):
    config = FreshetConfig(model=ModelConfig(dim=64), device="cpu", storage_path=str(folder))
    # So few lists that neither their training nor a search of them grows with the items.
    config.index.nlist, config.index.nprobe = 32, 4
    config.index.min_recall, config.index.max_imbalance = 0.0, 1e9
    return config, write_large_checkpoint(config, items).location


def _refresh_and_measure(rank, config, place):
    """The peak of anonymous memory in bytes, above that before; what is freed goes back to the system at once."""
    parts._SLICE_BYTES = 1 << 20  # so that even a small part has many slices
    assert ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    with AnonymousPeak() as peak:
        _refresh(rank, config, place)
    return peak.bytes


def test_a_rank_needs_no_more_memory_than_its_shard_and_512_mb_for_ten_million_items(tmp_path):
    """Of two sizes, the difference is what each item of a rank takes: 5 million such items must fit in 512 MB."""
    few, many, dim, owned_of_ten_million = 100_000, 500_000, 64, 5_000_000
    peaks = []
    for items in (few, many):
        config, place = _large(tmp_path / str(items), items)
        peaks.append(run_on_ranks(_refresh_and_measure, 2, config, place))
    shard_bytes = 2 * dim + 8  # ivf_fp16 and the id
    an_item = max(more - less for less, more in zip(*peaks, strict=True)) / ((many - few) / 2)
    allowed = shard_bytes + 512e6 / owned_of_ten_million
    assert an_item <= allowed, (an_item, allowed, peaks)
    assert max(peaks[1]) <= shard_bytes * many / 2 + 512e6


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
