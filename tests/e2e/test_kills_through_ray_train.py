"""One real Ray Train run on a bounded log, struck four times: a worker, all workers, the driver, the broker."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import read_state
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.observability.progress_file import read_progress
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from tests.chaos.campaign import fill_topics
from tests.support.local_ray import LocalRay, wait_until
from tests.support.ranks import run_on_ranks
from tests.support.state_digests import digests
from tests.support.worker_runs import train

pytestmark = pytest.mark.timeout(900)

SEED = 2  # the driver, then a worker, then all workers of the same submission
RANKS = 2
TARGETS = ["worker", "all", "driver", "broker"]
# The run has 167 steps; in each of these stretches something is struck, at a step that the seed picks.
STRETCHES = [(8, 16), (24, 36), (44, 56), (64, 76)]
PATIENCE_S = 240.0


def config_on(broker, storage):
    return FreshetConfig(
        stream=StreamConfig(
            bootstrap_servers=broker.bootstrap_servers,
            history_length=20,
            seen_length=40,
            positive_actions=["like"],
            negative_actions=["skip"],
            user_attributes=["gender"],
            buffered_rows_per_partition=32,  # so that a broker that is away is missed
        ),
        model=ModelConfig(
            dim=8, layers=1, heads=2, augmented_dim=4, uniform_negatives=10, history_length=20, dropout=0.2
        ),
        train=TrainConfig(
            workers=RANKS,
            batch_events=32,
            bounded=True,
            publish_every_s=0,
            checkpoint_every_s=0.3,
            max_restarts=1,  # fewer than groups die: a group that has committed a checkpoint earns it anew
        ),
        progressive=ProgressiveConfig(sample_fraction=0.3, bin_events=200, served_cpu_share=0.0),
        device="cpu",
        storage_path=str(storage),
    )


class StruckRun:
    """The run, what strikes it, and what was seen of it.

    Attributes:
        struck_at: the step at which each target was struck.
        groups: the first step at which each worker group, a (submission, attempt), was seen to train.
    """

    def __init__(self, config, ray, broker):
        self._config, self._ray, self._broker = config, ray, broker
        self._rng = np.random.default_rng(SEED)
        self.struck_at, self.groups = {}, {}
        self._lost = set()

    def run(self):
        self._trainer = self._ray.train(self._config).start()
        try:
            for target, stretch in zip(self._rng.permutation(TARGETS).tolist(), STRETCHES, strict=True):
                step = int(self._rng.integers(*stretch))
                wait_until(lambda step=step: self._trains_at(step), self._trainer, PATIENCE_S)
                said = self._said()
                self._strike(target, said["pids"])
                self.struck_at[target] = said["step"]
            wait_until(self._has_ended, self._trainer, PATIENCE_S)
        finally:
            self._trainer.stop()
        return self

    def _said(self):
        return read_progress(Path(self._config.storage_path)) or {}

    def _trains_at(self, step):
        """Whether a group that was not struck yet trains, has a checkpoint behind it and has come to a step."""
        said = self._said()
        group = (said.get("run_id"), said.get("attempt"))
        if said.get("state") != "training" or group in self._lost or not said["checkpoint"]:
            return False
        self.groups.setdefault(group, said["step"])
        return said["step"] >= step

    def _has_ended(self):
        self._trains_at(0)
        return self._trainer.exit_status() == 0

    def _strike(self, target, pids):
        if target == "broker":
            self._broker.kill()
            time.sleep(0.2)
            self._broker.start()
            return
        self._lost.update(self.groups)
        rank = int(self._rng.integers(len(pids)))
        victims = {"worker": [pids[rank]], "all": pids, "driver": [self._trainer.pid]}[target]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        if target == "driver":
            self._trainer.stop()
            self._trainer = self._ray.train(self._config).start()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The struck run, its settings, and the digests of the state of an undisturbed one."""
    folder = tmp_path_factory.mktemp("kills")
    with LocalBroker(folder / "kafka") as broker:
        undisturbed, config = config_on(broker, folder / "undisturbed"), config_on(broker, folder / "struck")
        create_topics(config.stream, partitions=2 * RANKS)
        fill_topics(config.stream, SEED)
        run_on_ranks(train, RANKS, undisturbed, timeout_s=PATIENCE_S)
        with LocalRay(cpus=RANKS) as ray:
            struck = StruckRun(config, ray, broker).run()
        yield struck, state_of(config), state_of(undisturbed), verify_exactly_once(config)


def state_of(config):
    return digests(read_state(CheckpointStore(config.checkpoint_location).newest()))


def test_a_worker_all_workers_the_driver_and_the_broker_are_killed_and_the_run_comes_to_its_end(runs):
    struck, *_ = runs
    assert set(struck.struck_at) == set(TARGETS)
    assert len(struck.groups) == 4  # the broker's end costs no group
    assert len({submission for submission, _ in struck.groups}) == 2
    _, *later = struck.groups.values()
    assert min(later) > 0  # none began again


def test_after_four_kills_no_event_is_lost_and_none_doubled(runs):
    *_, accounting = runs
    assert accounting.exactly_once, accounting


def test_after_four_kills_the_state_is_that_of_a_run_that_nothing_happened_to(runs):
    _, state, expected, _ = runs
    assert {name: state.get(name) for name in expected} == expected
    assert state.keys() == expected.keys()
