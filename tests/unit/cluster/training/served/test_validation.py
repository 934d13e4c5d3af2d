"""Served validation beside training: what is asked, what is dropped, and that training never waits."""

import threading
from dataclasses import replace

import pytest

from cluster.config import ProgressiveConfig
from cluster.observability.figures import SERVED
from cluster.training.served import validation
from cluster.training.served.answers import Answer
from cluster.training.served.validation import ServedValidation
from cluster.training.steps.progressive import sample_mask
from tests.support.training_batches import Run, to_batch

CONFIG = ProgressiveConfig(sample_fraction=0.5, served_cpu_share=0.05, bin_events=100)


class Answering:
    """Answers half of the events with hits, each question for so many CPU seconds, once it is let."""

    def __init__(self, cost_s=0.0):
        self.asked, self.cost_s, self.closed = [], cost_s, False
        self.may_answer, self.begun = threading.Event(), threading.Semaphore(0)
        self.may_answer.set()

    def ask(self, batch, step):
        events = len(batch.column("offset").flatten())
        self.asked.append((step, events))
        self.begun.release()
        assert self.may_answer.wait(30)
        if self.closed:
            raise OSError("it was closed")
        return Answer("v00000007", events, events // 2, cpu_s=self.cost_s * len(self.asked))

    def close(self):
        self.closed = True
        self.may_answer.set()


@pytest.fixture
def serve(monkeypatch):
    """Makes a validation whose training thread has used `clock[0]` CPU seconds; closed at the end."""
    monkeypatch.setattr(validation, "_LOOK_EVERY_S", 0.001)
    made = []

    def make(answering, clock=(0.0,), live=lambda: True, config=CONFIG):
        served = ServedValidation(config, live, lambda: answering, lambda: clock[0])
        made.append(served)
        return served

    yield make
    for served in made:
        served.close()


def batch_of(events, first=0):
    return to_batch([Run(1, [], list(range(1, events + 1)), offsets=list(range(first, first + events)))])


def wait_until(holds):
    waiting = threading.Event()
    for _ in range(30_000):
        if holds():
            return
        waiting.wait(0.001)
    raise AssertionError("it did not come to hold within 30 s")


def begin(served):
    """Let it see that a version is live."""
    served.offer(batch_of(1).slice(0, 0), 0, 0)
    wait_until(served._live.is_set)


def answered(served):
    said = served.to_json()
    return sum(said["sample"]), sum(said["hits"]), said["dropped"]


def test_the_sampled_events_of_a_step_are_answered_in_the_bin_of_the_events_before_it(serve):
    answering = Answering()
    served = serve(answering)
    batch = batch_of(60)
    sampled = int(sample_mask(batch, 0.5).sum())
    begin(served)
    served.offer(batch, 3, 250)
    wait_until(lambda: answered(served)[0] == sampled)
    assert answering.asked == [(3, sampled)]
    assert served.to_json() == {
        "kind": SERVED,
        "version": "v00000007",
        "dropped": 0,
        "bin_events": 100,
        "sample": [0, 0, sampled],
        "hits": [0, 0, sampled // 2],
    }


def test_before_a_version_is_live_nothing_is_asked_or_counted(serve):
    answering = Answering()
    looks = []
    served = serve(answering, live=lambda: looks.append(1) or len(looks) > 3)
    served.offer(batch_of(60), 0, 0)
    assert answered(served) == (0, 0, 0)
    wait_until(served._live.is_set)
    assert len(looks) == 4
    assert (answering.asked, answered(served)) == ([], (0, 0, 0))


def test_training_does_not_wait_for_a_slow_answer_and_what_comes_meanwhile_is_dropped(serve):
    answering = Answering()
    answering.may_answer.clear()
    served = serve(answering)
    begin(served)
    served.offer(batch_of(40), 1, 0)
    assert answering.begun.acquire(timeout=30)  # it is being answered, and will not be before it is let
    served.offer(batch_of(40), 2, 40)  # waits
    for step in range(3, 9):
        served.offer(batch_of(40), step, 40 * step)
    sampled = int(sample_mask(batch_of(40), 0.5).sum())
    assert answered(served) == (0, 0, 6 * sampled)
    answering.may_answer.set()
    wait_until(lambda: answered(served)[0] == 2 * sampled)
    assert [step for step, _ in answering.asked] == [1, 2]


def test_answers_cost_at_most_their_share_of_trainings_cpu_time(serve):
    answering, clock = Answering(cost_s=0.5), [100.0]
    served = serve(answering, clock)
    begin(served)
    for step in range(1, 401):
        before = len(answering.asked)
        spent = answering.cost_s * before
        served.offer(batch_of(20), step, 0)
        affordable = spent <= 0.05 * (clock[0] - 100)
        if affordable:
            wait_until(lambda before=before: len(answering.asked) == before + 1)
            wait_until(lambda before=before: served._spent_s == answering.cost_s * (before + 1))
        assert len(answering.asked) == before + affordable
        clock[0] += 1.0
    assert len(answering.asked) == 40  # 20 s of 400, each of which cost .5
    sampled = int(sample_mask(batch_of(20), 0.5).sum())
    assert answered(served)[2] == 360 * sampled


def test_of_a_large_step_a_smaller_sample_is_asked_about(serve, monkeypatch):
    monkeypatch.setattr(validation, "MOST_EVENTS", 16)
    answering = Answering()
    served = serve(answering)
    begin(served)
    batch = batch_of(200)
    served.offer(batch, 1, 0)
    wait_until(lambda: answered(served)[0] == 16)
    assert answered(served)[2] == int(sample_mask(batch, 0.5).sum()) - 16


def test_an_answerer_that_ends_is_replaced_and_its_events_are_counted(serve, monkeypatch, caplog):
    monkeypatch.setattr(validation, "_RETRY_S", 0.001)
    answering = Answering()
    broken = [True, True, False]

    def ask(batch, step, ask=answering.ask):
        if broken.pop(0):
            raise OSError("it has ended")
        return ask(batch, step)

    ended = []
    answering.ask, answering.close = ask, lambda: ended.append(1)
    served = serve(answering)
    begin(served)
    sampled = int(sample_mask(batch_of(40), 0.5).sum())
    for step, total in ((1, sampled), (2, 2 * sampled), (3, 3 * sampled)):
        wait_until(lambda: not served._questions.full())
        served.offer(batch_of(40), step, 0)
        wait_until(lambda total=total: sum(answered(served)[i] for i in (0, 2)) == total)
    assert answered(served) == (sampled, sampled // 2, 2 * sampled)
    assert len(ended) == 2
    assert caplog.text.count("it has ended") == 1


@pytest.mark.parametrize("off", [{"served_cpu_share": 0.0}, {"sample_fraction": 0.0}])
def test_turned_off_it_starts_no_thread_and_looks_at_no_version(serve, off):
    def look():
        raise AssertionError("it looked for a version")

    served = serve(Answering(), live=look, config=replace(CONFIG, **off))
    served.offer(batch_of(40), 0, 0)
    assert served._thread is None


def test_a_resumed_run_goes_on_from_what_it_said(serve):
    served, earlier = serve(Answering()), {"dropped": 5, "bin_events": 100, "sample": [4, 9], "hits": [1, 2]}
    served.go_on_from({"kind": SERVED, "version": "v1", **earlier})
    assert answered(served) == (13, 3, 5)
    served.go_on_from(None)
    served.go_on_from({"kind": "of another kind"})
    assert answered(served) == (13, 3, 5)
