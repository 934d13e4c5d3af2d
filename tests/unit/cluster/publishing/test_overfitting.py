"""The quality gate and a candidate that knows the last events by heart."""

import numpy as np
import pyarrow as pa
import pytest

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher
from cluster.training.state.run import TrainingRun
from streaming.batches.batcher import Batcher
from streaming.events.schema import EVENT_SCHEMA
from tests.benchmarks.support.synthetic import Population
from tests.support.checkpointing import save_checkpoint
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log
from tests.support.unit_runs import CPU, QUOTA, small_config

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, EACH = 64, 4
STEPS = USERS * EACH // QUOTA
"""Of a phase, in which each user takes some items that are new to the user."""


def log_of_three_phases():
    """Users take items of one half of the catalogue, then of the other half, then of the first half again."""
    rng = np.random.default_rng(2)
    first, second = (np.stack([rng.permutation(25) for _ in range(USERS)]) + 1 + half for half in (0, 25))
    items = np.concatenate([first[:, :EACH], second[:, :EACH], first[:, EACH : 2 * EACH]])
    users = np.tile(np.repeat(np.arange(USERS) + 1, EACH), 3)
    events = Population(users=USERS, items=50).events(users.shape[0]).to_pydict()
    chosen = {"user_id": users, "item_id": items.reshape(-1)}
    return pa.RecordBatch.from_pydict(events | chosen, schema=EVENT_SCHEMA)


class Run:
    """A run of one partition with an index."""

    def __init__(self, folder):
        config = small_config()
        config.storage_path, config.index.min_quality_events = str(folder), 200
        self.run = run = TrainingRun.create(config, [0], Collectives(), CPU)
        run.catalogue.apply(Population(users=USERS, items=50, attributes=1).catalogue())
        source = MemorySource(partitioned_log(log_of_three_phases(), 1), [0])
        run._opened = (
            source,
            Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters()),
            None,
        )
        self._checkpoints = CheckpointStore(config.checkpoint_location)

    def phase(self, times):
        """The batches of the next phase, trained on several times."""
        run, batches = self.run, [self.run.batcher.next_batch(QUOTA) for _ in range(STEPS)]
        for batch in times * batches:
            run.train_step.train(run.train_step.prepare(batch, run.step), run.step)
            run.step += 1
        return batches

    def publish(self, before=(), after=()):
        """A version of what was trained, with events that were sampled before and after the checkpoint's snapshot."""
        publisher = Publisher(Collectives(), self.run.config, CPU)
        for batch in before:
            publisher.events.add(batch)
        checkpoint = save_checkpoint(self.run, self._checkpoints, Collectives())
        publisher.cover()
        for batch in after:
            publisher.events.add(batch)
        publisher.start(checkpoint, [], self.run.catalogue.item_count)
        publisher.wait()
        return publisher.last


def quality_in(report):
    return next(check for check in report.gate.checks if check.name == "quality")


def test_a_candidate_that_overfits_passes_on_events_that_it_knows_and_is_refused_on_new_ones(tmp_path):
    scene = Run(tmp_path)
    scene.phase(times=3)
    assert scene.publish().version is not None
    known, new = scene.phase(times=5), scene.phase(times=0)

    refused = scene.publish(before=known, after=new)
    failed = quality_in(refused)
    assert refused.version is None
    assert refused.refused is not None
    assert [check.name for check in refused.gate.checks if not check.passed] == ["quality"]
    assert "on 256 events after both were trained" in failed.note

    flattered = scene.publish(before=known)
    passed = quality_in(flattered)
    assert flattered.version is not None
    assert passed.value > 0.3 > 0.05 > failed.value
    assert "on 256 events that the candidate may have been trained on" in passed.note


def test_few_new_events_are_not_enough_and_the_log_says_which_are_used(tmp_path, caplog):
    caplog.set_level("INFO")
    scene = Run(tmp_path)
    known = scene.phase(times=1)
    scene.publish()
    new = scene.phase(times=0)[:5]
    caplog.clear()
    assert "may have been trained on" in quality_in(scene.publish(before=known, after=new)).note
    said = [line for line in caplog.messages if "(index.min_quality_events)" in line]
    assert len(said) == 1
    assert "the quality gate uses earlier ones, which the candidate may have been trained on" in said[0]
