"""Served progressive validation: sampled events answered by the live version, as for their users.

Rank 0 asks about its own sampled events of the step that was just trained; partitions are spread over ranks by user, so
its users are a representative part of all. Training passes on a question and never waits; a thread sends it to a
process that holds the live version. Answers may use a set share of the training thread's CPU time. Questions beyond it,
or that arrive while another one waits, are dropped and counted.

Which version was live depends on the clock, so these figures are not in checkpoints.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.config import FreshetConfig, ProgressiveConfig
from cluster.observability.figures import SERVED
from cluster.queries.version_store import version_store
from cluster.training.served.answering_process import Answering, AnsweringProcess
from cluster.training.served.answers import Answer
from cluster.training.steps.progressive import Curve, sample_bits
from retrieval.versions.store import VersionError
from streaming.batches.selection import select_events

_log = logging.getLogger(__name__)

MOST_EVENTS = 256
"""Events of one question: an answer takes a fraction of a second, and memory does not depend on the batch size."""
_LOOK_EVERY_S = 1.0
_RETRY_S = 30.0
_END_S = 5.0


@dataclass(frozen=True)
class Question:
    """Sampled events of one step.

    Attributes:
        batch: the events, in TRAINING_BATCH_SCHEMA.
        events: their number.
        step: the step, from 0, in which they were trained on.
        events_before: number of events trained on before the step.
    """

    batch: pa.RecordBatch
    events: int
    step: int
    events_before: int


class ServedValidation:
    """Asks, counts and keeps the curve. Only the training thread calls `offer`.

    Args:
        config: settings; `served_cpu_share` 0 turns it off.
        is_live: whether any version is live; may read storage.
        answering: starts the answering process.
        cpu_s: CPU seconds of the thread that calls `offer`.
    """

    def __init__(
        self,
        config: ProgressiveConfig,
        is_live: Callable[[], bool],
        answering: Callable[[], Answering],
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._config, self._is_live, self._start, self._cpu_s = config, is_live, answering, cpu_s
        self._on = config.sample_fraction > 0 and config.served_cpu_share > 0
        self._questions: queue.Queue[Question] = queue.Queue(maxsize=1)
        self._live, self._ended = threading.Event(), threading.Event()
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._answering: Answering | None = None
        self._first_cpu_s: float | None = None
        self._spent_s = self._spent_before_s = 0.0
        self._curve = _new_curve(config)
        self._version, self._dropped, self._problem = "", 0, ""

    def offer(self, batch: pa.RecordBatch, step: int, events_before: int) -> None:
        """Ask about the sampled events of this batch, if a version is live and the budget allows it; never waits.

        Args:
            batch: the trained events, in TRAINING_BATCH_SCHEMA.
            step: their step, from 0.
            events_before: number of events trained on before it.
        """
        if not self._on:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="served validation", daemon=True)
            self._thread.start()
        if not self._live.is_set():
            return
        bits_E = sample_bits(batch)
        sampled = np.flatnonzero(bits_E < self._config.sample_fraction)
        # The smallest bits: a sample of the sample.
        asked = sampled[np.argsort(bits_E[sampled])[:MOST_EVENTS]]
        if not asked.shape[0]:
            return
        if self._questions.full() or not self._affordable():
            self._drop(sampled.shape[0])
            return
        self._drop(sampled.shape[0] - asked.shape[0])
        chosen_E = np.zeros(bits_E.shape[0], np.bool_)
        chosen_E[asked] = True
        self._questions.put_nowait(
            Question(select_events(batch, chosen_E), asked.shape[0], step, events_before)
        )

    def to_json(self) -> dict[str, Any]:
        """The figures for `progress.json`."""
        with self._lock:
            said: dict[str, Any] = {
                "kind": SERVED,
                "version": self._version or None,
                "dropped": self._dropped,
            }
            return {**said, **self._curve.to_json()}

    def go_on_from(self, saved: Mapping[str, Any] | None) -> None:
        """Continue from `to_json` of an earlier attempt of the run."""
        if saved and saved.keys() >= {"dropped", *self._curve.to_json()}:
            with self._lock:
                self._curve.load_json(saved)
                self._dropped = int(saved["dropped"])

    @property
    def spent_s(self) -> float:
        """CPU seconds that answers have cost, loading versions included."""
        return self._spent_s

    def close(self) -> None:
        """End thread and process, whatever they are doing."""
        self._ended.set()
        with self._starting:
            if self._answering is not None:
                self._answering.close()
        if self._thread is not None:
            self._thread.join(_END_S)  # it may be waiting for storage

    def _affordable(self) -> bool:
        """Whether the cost of answers is within its share of training's cost since the first question."""
        now_s = self._cpu_s()
        if self._first_cpu_s is None:
            self._first_cpu_s = now_s
        return self._spent_s <= self._config.served_cpu_share * (now_s - self._first_cpu_s)

    def _drop(self, events: int) -> None:
        with self._lock:
            self._dropped += events

    def _work(self) -> None:
        while not self._ended.is_set() and not self._any_live():
            self._ended.wait(_LOOK_EVERY_S)
        self._live.set()
        while not self._ended.is_set():
            try:
                question = self._questions.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue
            self._count(question, self._ask(question))

    def _any_live(self) -> bool:
        try:
            return self._is_live()
        except (OSError, VersionError) as error:
            self._trouble(str(error))
            return False

    def _ask(self, question: Question) -> Answer:
        try:
            with self._starting:
                if self._ended.is_set():
                    return Answer()
                answering = self._answering = self._answering or self._start()
            return answering.ask(question.batch, question.step)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return Answer(unanswered=question.events, problem=str(error))

    def _give_up(self, error: Exception) -> None:
        """Continue with another process a while later."""
        self._trouble(str(error))
        with self._starting:
            if self._answering is not None:
                self._answering.close()
            self._answering, self._spent_before_s = None, self._spent_s
        self._ended.wait(_RETRY_S)

    def _count(self, question: Question, answer: Answer) -> None:
        self._trouble(answer.problem)
        with self._lock:
            self._dropped += answer.unanswered
            self._spent_s = max(self._spent_s, self._spent_before_s + answer.cpu_s)
            if answer.version:
                self._version = answer.version
                self._curve.add(question.events_before, np.array([answer.sample, answer.hits], np.float64))

    def _trouble(self, problem: str) -> None:
        if problem and problem != self._problem and not self._ended.is_set():
            _log.warning("events are not answered from the live version: %s", problem)
        self._problem = problem


def served_validation(config: FreshetConfig, rank: int) -> ServedValidation:
    """The served validation of a rank; only rank 0 asks."""
    share = config.progressive.served_cpu_share if rank == 0 else 0.0
    store = version_store(config)
    return ServedValidation(
        replace(config.progressive, served_cpu_share=share),
        is_live=lambda: store.live_name() is not None,
        answering=lambda: AnsweringProcess(config),
    )


def _new_curve(config: ProgressiveConfig) -> Curve:
    return Curve(config.bin_events, {"sample": [], "hits": []})
