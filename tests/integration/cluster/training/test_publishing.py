"""Versions that several ranks build of one checkpoint, beside training: any number of them, and what they outlive."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher
from retrieval.versions.searcher import Searcher
from tests.support.checkpointing import save_checkpoint
from tests.support.ranks import run_on_ranks
from tests.support.unit_runs import CPU, small_run, train_steps

ITEMS = 50


@pytest.fixture
def trained(tmp_path):
    """The settings of a run of one rank, and its checkpoint."""
    run = small_run()
    train_steps(run, 2)
    config = replace(run.config, storage_path=str(tmp_path))
    checkpoint = save_checkpoint(run, CheckpointStore(config.checkpoint_location), Collectives())
    return config, checkpoint.location


def _attempt(publisher, comm, location):
    """One version; its name, and what is wrong, on every rank."""
    publisher.unpublished.add(np.array([1, 2], np.int64))
    publisher.cover()
    checkpoint = open_checkpoint(location) if comm.rank == 0 else None
    publisher.start(checkpoint, [np.ones((3, 8), np.float32)], ITEMS)
    publisher.wait()
    version = publisher.last.version if publisher.last is not None else None
    return (version.name if version is not None else None), publisher.problem


def _in_threads(rank, config, location):
    comm = Collectives()
    publisher = Publisher(comm, config, CPU)
    said = _attempt(publisher, comm, location)
    publisher.close()
    return *said, int(publisher.freshness.run.counts.sum())


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_publishes_a_checkpoint_of_one(trained, world):
    config, location = trained
    said = run_on_ranks(_in_threads, world, config, location)
    assert said == [("v00000001", "", 2 * world)] * world
    assert Searcher(config.index_location).version.manifest["items"] == ITEMS


def _with_a_builder_killed(rank, config, location):
    comm, pids = Collectives(), []

    def check():
        if pids:
            os.kill(pids.pop(), signal.SIGKILL)

    config = replace(config, train=replace(config.train, publish_in_thread_items=0))
    publisher = Publisher(comm, config, CPU, check)
    said = [_attempt(publisher, comm, location)]
    before = comm.gather_objects(publisher._process.pid)
    pids += [before[1]]  # when rank 0 begins the next version, the other rank's builder dies
    said += [_attempt(publisher, comm, location) for _ in range(2)]
    after = comm.gather_objects(publisher._process.pid)
    publisher.close()
    return said, not set(before) & set(after), int(publisher.freshness.run.counts.sum())


def test_when_the_builder_of_one_rank_is_killed_all_ranks_start_others_for_the_next_version(trained):
    config, location = trained
    for rank, (said, all_new, fresh) in enumerate(run_on_ranks(_with_a_builder_killed, 2, config, location)):
        assert [version for version, _ in said] == ["v00000001", "v00000001", "v00000002"]
        assert [bool(problem) for _, problem in said] == [False, rank == 0, False]
        assert all_new
        assert fresh == 12  # of three attempts of two ranks, those of the lost one in the next version
    assert Searcher(config.index_location).version.name == "v00000002"
