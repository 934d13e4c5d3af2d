"""Sampled events as requests to the live version: the results that a user would have got just before each event.

Shape letters: E events, S scored events, K results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.queries.new_events import NewEvents
from cluster.queries.served_model import ServedModel
from cluster.training.served.recent_models import RecentModels
from streaming.batches.selection import count_events
from streaming.events.quoting import described


@dataclass(frozen=True)
class Answer:
    """The outcome of one question's events.

    Attributes:
        version: name of the version that answered; empty if none did.
        sample: number of scored events.
        hits: number of those whose item was in the top k.
        unanswered: events that no version could answer.
        problem: why the live version cannot be used; empty if it can.
        cpu_s: CPU seconds that answers have cost since the first one, including loading versions.
    """

    version: str = ""
    sample: int = 0
    hits: int = 0
    unanswered: int = 0
    problem: str = ""
    cpu_s: float = 0.0


class LiveAnswers:
    """Answers from the version and delta that are live at the time of each question.

    Args:
        models: follows the live version and its deltas.
        top_k: an item among this many results is a hit.
    """

    def __init__(self, models: RecentModels, top_k: int) -> None:
        self._models, self._top_k = models, top_k

    def answer(self, batch: pa.RecordBatch, step: int) -> Answer:
        """Answer all events of a batch in TRAINING_BATCH_SCHEMA, which were trained on in this step (from 0).

        A model that was trained on the events themselves cannot answer them; the one before its last deltas may.
        """
        events = count_events(batch)
        try:
            self._models.refresh()
            model = self._models.before(step)
            if model is None:
                return Answer(unanswered=events)
            sample, hits = count_hits(model, batch, self._top_k)
            return Answer(model.version.name, sample, hits)
        except Exception as error:  # for example a version with other user attributes; the next one may work
            return Answer(unanswered=events, problem=described(error))


def count_hits(model: ServedModel, batch: pa.RecordBatch, top_k: int) -> tuple[int, int]:
    """(scored events, hits). An item that the user has had before is not scored; one not in the version is a miss."""
    new = NewEvents.of(batch)
    if not new.had:
        return 0, 0
    query_SD = np.ascontiguousarray(model.encode(batch)[new.event_S])
    found_SK, _ = model.search(query_SD, top_k, exclude=new.had)
    return len(new.had), int((found_SK == new.target_S[:, None]).any(axis=1).sum())
