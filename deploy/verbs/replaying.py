"""The verb `replay`, and the same as a thread of the demo: a data set into Kafka as a live stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.background import Background
from deploy.command.terminal import line

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from deploy.command.terminal import Terminal
    from deploy.datasets.datasets import Dataset
    from streaming.config import StreamConfig
    from streaming.producing.producer import Wire


def fetch_folder(name: str, say: Callable[[str], None]) -> Path:
    """The folder of a named data set, fetched if it is not in the cache yet."""
    from deploy.datasets.datasets import fetch

    return Path(fetch(name, progress=say))


def fetch_dataset(
    name_or_folder: str, progress: Callable[[str], None], stream: StreamConfig | None = None
) -> Dataset:
    """A data set by name, or from a folder laid out like one; `stream` bounds what its files may decode to."""
    from deploy.datasets.datasets import load

    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = fetch_folder(name_or_folder, progress)
    return load(folder, progress, **({} if stream is None else {"most_bytes": stream.max_row_group_bytes}))


def first_events(dataset: Dataset, events: int) -> Dataset:
    """The data set with only its first `events` interactions in time order; all of them for 0."""
    if not 0 < events < dataset.interactions.num_rows:
        return dataset
    # A stable sort: which of the events of one second stay does not depend on the machine.
    times_ms = dataset.interactions["timestamp_ms"].to_numpy()
    kept = np.sort(np.argsort(times_ms, kind="stable")[:events])
    return replace(dataset, interactions=dataset.interactions.take(pa.array(kept)))


def recent_users(dataset: Dataset, count: int, at_least: int = 20) -> list[int]:
    """Users of the newest events, each with `at_least` events (fewer if no user has so many)."""
    interactions = dataset.interactions
    order = np.argsort(interactions["timestamp_ms"].to_numpy(), kind="stable")[::-1]
    users = interactions["user_id"].to_numpy()[order]
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(pa.array(users)).to_pylist()}
    _, first = np.unique(users, return_index=True)
    newest_first = users[np.sort(first)].tolist()
    active = [user for user in newest_first if counts[user] >= at_least]
    return (active or newest_first)[:count]


class ReplayThread(Background):
    """A replay beside other work; its failure is raised by `check`."""

    def __init__(self, stream: StreamConfig, dataset: Dataset, seconds: float, seed: int) -> None:
        super().__init__("replay", join_s=10.0)
        self.produced = 0
        self.finished = False
        self._stream, self._dataset, self._seconds, self._seed = stream, dataset, seconds, seed
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise what ended the replay, if it failed."""
        if self._error is not None:
            raise self._error

    def work(self) -> None:
        """Send the data set, until it is sent or the block ends."""
        from streaming.producing.replay import replay

        try:
            result = replay(
                self._stream,
                self._dataset,
                duration_s=self._seconds,
                seed=self._seed,
                progress=self._advance,
                stop=self.ended,
            )
        except Exception as error:
            self._error = error
        else:
            self.produced = result.events
            self.finished = True

    def _advance(self, acknowledged: int) -> None:
        self.produced = acknowledged


def run_replay(
    config: FreshetConfig,
    name_or_folder: str,
    seconds: float,
    events: int,
    partitions: int,
    wire: Wire,
    console: Terminal,
) -> dict[str, Any]:
    """Make the topics if they are missing, publish items and users, then send the events.

    Returns:
        `dataset`, `topic`, `events_produced`, `items`, `users`, and what `streaming.producing.producer.replay` says.
    Raises:
        BrokerUnavailable, TopicError: the cluster does not answer or cannot take it.
    """
    from streaming.kafka.topics import create_topics
    from streaming.producing.catalogue import publish_catalogue
    from streaming.producing.replay import replay

    # The broker first: a data set is not worth fetching for nobody.
    create_topics(config.stream, partitions)
    dataset = first_events(fetch_dataset(name_or_folder, console.print, config.stream), events)
    catalogue = publish_catalogue(config.stream, dataset.items, dataset.users)
    total = dataset.interactions.num_rows
    with console.status(line("replaying")) as spinner:
        sent = replay(
            config.stream,
            dataset,
            duration_s=seconds,
            wire=wire,
            seed=config.seed,
            progress=lambda done: spinner.update(line(f"replaying: {done:,} of {total:,} events")),
        )
    return {
        "dataset": name_or_folder,
        "topic": config.stream.interactions_topic,
        "events_produced": sent.events,
        **catalogue._asdict(),
        **asdict(sent),
    }
