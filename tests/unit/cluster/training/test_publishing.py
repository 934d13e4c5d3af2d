"""When a version is built, and of which checkpoint; at most one at a time."""

from types import SimpleNamespace

import pytest

from cluster.collectives import Collectives
from cluster.training.control import Report
from cluster.training.publishing import Publishing
from cluster.training.since import Since

EVERY_S = 10.0


class Run(SimpleNamespace):
    """A run as `Publishing` sees it."""

    def __init__(self):
        super().__init__(
            step=0,
            catalogue=SimpleNamespace(item_count=5),
            progressive=SimpleNamespace(recent_queries=[]),
        )


class Publisher:
    """Notes what is asked of it."""

    def __init__(self):
        self.busy, self.problem, self.built = False, "", []

    def start(self, checkpoint, queries, items):
        assert not self.busy
        self.built.append(checkpoint)
        self.problem = ""

    def give_up(self, problem):
        self.problem = problem

    def wait(self):
        self.busy = False


class Life:
    """A run with its clock, its checkpoints and its publishing, on rank 0."""

    def __init__(self):
        self.run, self.since, self.publisher = Run(), Since(), Publisher()
        self.saving = SimpleNamespace(committed=0, tried=0, newest=None, problem="")
        self.publishing = Publishing(self.publisher, Collectives(), self.saving, self.since, EVERY_S)
        self.now = self.publishing._last_s

    def step(self, seconds=1.0):
        self.run.step += 1
        self.wait(seconds)

    def wait(self, seconds):
        self.now += seconds
        self.since.trained(self.run.step)
        self.publishing.consider(self.run, self.now)
        self.since.seen(Report(figures={"rows_read": self.run.step}))

    def snapshot(self):
        self.since.saving()

    def commit(self):
        self.saving.committed, self.saving.tried = self.saving.committed + 1, self.saving.tried + 1
        self.saving.newest = f"checkpoint {self.saving.committed}"
        self.since.saved()
        self.publishing.consider(self.run, self.now)

    def fail(self, problem):
        self.saving.tried, self.saving.problem = self.saving.tried + 1, problem
        self.publishing.consider(self.run, self.now)

    def publish(self):
        assert self.publishing.ready
        self.publishing.publish(self.run)
        self.publishing.consider(self.run, self.now)


@pytest.fixture
def life():
    return Life()


def test_before_its_time_and_without_a_step_no_version_is_due(life):
    life.wait(2 * EVERY_S)
    assert not life.publishing.wants_checkpoint  # nothing was trained yet
    other = Life()
    other.step(EVERY_S - 1)
    assert not other.publishing.wants_checkpoint


def test_a_version_that_is_due_waits_for_a_checkpoint_of_what_there_is_and_then_no_longer(life):
    life.step(EVERY_S)
    assert (life.publishing.wants_checkpoint, life.publishing.ready) == (True, False)
    life.snapshot()
    life.step()
    assert not life.publishing.ready
    life.commit()
    assert (life.publishing.wants_checkpoint, life.publishing.ready) == (False, True)
    life.publish()
    assert life.publisher.built == ["checkpoint 1"]
    assert not life.publishing.ready
    life.wait(EVERY_S - 2)
    assert not life.publishing.wants_checkpoint
    life.wait(1)  # so long after the last one was due; a step came after its snapshot
    assert life.publishing.wants_checkpoint


def test_a_checkpoint_that_holds_everything_is_used_again(life):
    life.step()
    life.snapshot()
    life.commit()
    life.wait(EVERY_S)
    assert (life.publishing.wants_checkpoint, life.publishing.ready) == (False, True)
    life.publish()
    life.wait(EVERY_S)
    assert not life.publishing.ready  # an idle run makes no more of them


def test_the_empty_checkpoint_of_a_new_group_is_not_used_for_a_version_that_is_due_after_the_first_step(life):
    life.wait(EVERY_S)
    life.snapshot()
    life.commit()  # of no step: it has no items
    life.step()
    assert (life.publishing.wants_checkpoint, life.publishing.ready) == (True, False)
    life.snapshot()
    life.commit()
    assert life.publishing.ready


def test_a_checkpoint_on_its_way_when_the_version_is_due_is_used(life):
    life.step(EVERY_S - 1)
    life.snapshot()
    life.step()
    assert life.publishing.wants_checkpoint
    life.commit()
    assert life.publishing.ready


def test_a_checkpoint_that_fails_costs_the_version_and_the_next_one_is_due_at_its_time(life):
    life.step(EVERY_S)
    life.fail("the disk is full")
    assert life.publisher.problem == "the disk is full"
    assert not life.publishing.wants_checkpoint
    life.wait(EVERY_S - 1)
    assert not life.publishing.wants_checkpoint
    life.wait(1)
    assert life.publishing.wants_checkpoint
    life.snapshot()
    life.commit()
    life.publish()
    assert (life.publisher.built, life.publisher.problem) == (["checkpoint 1"], "")


def test_while_a_version_is_built_no_other_is_due(life):
    life.step(EVERY_S)
    life.snapshot()
    life.commit()
    life.publish()
    life.publisher.busy = True
    life.step(5 * EVERY_S)
    assert not life.publishing.wants_checkpoint
    life.publisher.busy = False
    life.step()
    assert life.publishing.wants_checkpoint


def test_the_last_version_is_of_the_last_checkpoint_unless_that_was_published(life):
    life.step(EVERY_S)
    life.snapshot()
    life.commit()
    life.publishing.publish_last(life.run)
    assert life.publisher.built == ["checkpoint 1"]
    life.since.published()
    life.publishing.publish_last(life.run)
    assert life.publisher.built == ["checkpoint 1"]
