"""Items that are new while the demo runs: how long after its first event a server can recommend each one.

Some items are left out of the catalogue at the start; the record of each is published when its first event was sent.
A server's model in this process follows versions and deltas, as `Recommender` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.background import Background
from deploy.datasets.choosing import split_events
from deploy.demo.replay_thread import FIRST_EVENTS

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from cluster.queries.served_model import ServedModel
    from deploy.datasets.datasets import Dataset

COUNT = 12
_TITLE_COLUMNS = 24
_FROM, _TO = 0.25, 0.9
"""Shares of the stream between which their first events are."""
_LOOK_EVERY_S = 0.02
_FOLLOW_EVERY_S = 0.1


class NewItems(Background):
    """Watches some items from their first event on, while its block runs.

    Args:
        config: of the run.
        dataset: that is replayed.
    """

    def __init__(self, config: FreshetConfig, dataset: Dataset) -> None:
        super().__init__("new items")
        self.seconds: list[float] = []
        """From each item's first event to a model that can recommend it."""
        self._config = config
        self._first_event = _chosen(dataset, config.seed)
        self._records = _records(dataset.items, self._first_event)
        self._before_s = time.time()
        self._appeared_s: dict[int, float] = {}
        self._unpublished: list[int] = []
        self._news: list[str] = []
        self._error: BaseException | None = None
        self.count = len(self._first_event)
        """How many there are."""

    def known_before(self, dataset: Dataset) -> Dataset:
        """The data set without the records of the new items."""
        return replace(dataset, items=_records(dataset.items, self._first_event, others=True))

    def produced(self, events: int) -> None:
        """Note how many events are in the topic. An item's clock starts at the last call without its first event."""
        for item in [item for item, number in self._first_event.items() if number < events]:
            del self._first_event[item]
            self._appeared_s[item] = self._before_s
            self._unpublished.append(item)
        self._before_s = time.time()

    def take_news(self) -> list[str]:
        """A sentence for each item that can be recommended since the last call.

        Raises:
            Exception: watching has failed.
        """
        if self._error is not None:
            raise self._error
        news, self._news = self._news, []
        return news

    def work(self) -> None:
        """Publish records of items that have appeared, and look whether the model has these items."""
        if not self.count:
            return
        from cluster.queries.served_model import follow_models

        models = follow_models(self._config)
        try:
            with models.following(_FOLLOW_EVERY_S):
                while not self.ended.wait(_LOOK_EVERY_S):
                    self._publish()
                    self._look(models.current)
            models.refresh()
            self._look(models.current)  # the last version has what came when no deltas were made any more
        except Exception as error:
            self._error = error
        finally:
            models.close()

    def _publish(self) -> None:
        from streaming.producing.catalogue import publish_catalogue

        items, self._unpublished = self._unpublished, []
        if items:
            publish_catalogue(self._config.stream, _records(self._records, items), None)

    def _look(self, model: ServedModel | None) -> None:
        """Note which items a model can recommend that none before could."""
        if model is None or not self._appeared_s:
            return
        waiting = np.array(list(self._appeared_s), np.int64)
        for item in waiting[model.items.holds(waiting)].tolist():
            seconds = time.time() - self._appeared_s.pop(item)
            self.seconds.append(seconds)
            [title] = _records(self._records, [item])["title"].to_pylist()
            version = f"v{int(model.version.name[1:])}"
            state = f"d{model.delta} of {version}" if model.delta else version
            shown = shorten(title, _TITLE_COLUMNS, placeholder="…")
            self._news.append(f"new item: {shown} can be recommended after {seconds:.1f} s ({state})")


def _chosen(dataset: Dataset, seed: int) -> dict[int, int]:
    """Some items that first occur while the stream runs at its pace, and the number of each one's first event."""
    from streaming.producing.replay import in_time_order

    if not dataset.items.num_rows:
        return {}
    parts = [in_time_order(part.interactions, seed) for part in split_events(dataset, FIRST_EVENTS)]
    order = np.concatenate([part["item_id"].to_numpy() for part in parts])
    items, first = np.unique(order, return_index=True)
    within = (first >= max(FIRST_EVENTS, _FROM * order.shape[0])) & (first < _TO * order.shape[0])
    within &= np.isin(items, dataset.items["item_id"].to_numpy())
    at = np.flatnonzero(within)[np.argsort(first[within])]
    some = at[np.unique(np.linspace(0, max(0, at.shape[0] - 1), min(COUNT, at.shape[0])).astype(np.int64))]
    return dict(zip(items[some].tolist(), first[some].tolist(), strict=True))


def _records(items: pa.Table, ids: Iterable[int], *, others: bool = False) -> pa.Table:
    """The records of some items, or of all others."""
    if not items.num_rows:
        return items
    chosen = pc.is_in(items["item_id"], pa.array(list(ids), pa.int64()))
    return items.filter(pc.invert(chosen) if others else chosen)
