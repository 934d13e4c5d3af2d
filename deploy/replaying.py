"""The verb `replay`, and the same as a thread of the demo: a data set into Kafka as a live stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deploy.errors import CommandError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import FreshetConfig
    from deploy.datasets import Dataset
    from streaming.config import StreamConfig

WIRES = ("arrow", "json")


class ReplayStopped(CommandError):
    """The replay was told to stop before its end."""


def fetch_folder(name: str, say: Callable[[str], None]) -> Path:
    """The folder of a named data set, fetched if it is not in the cache yet."""
    from deploy.datasets import fetch

    return Path(fetch(name, progress=say))


def fetch_dataset(name_or_folder: str, progress: Callable[[str], None]) -> Dataset:
    """A data set by name, or from a folder laid out like one."""
    from deploy.datasets import load

    folder = Path(name_or_folder)
    return load(folder if folder.is_dir() else fetch_folder(name_or_folder, progress))


def first_events(dataset: Dataset, events: int) -> Dataset:
    """The data set with only its first `events` interactions in time order; all of them for 0."""
    from dataclasses import replace

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


def send_all(
    stream: StreamConfig,
    dataset: Dataset,
    seconds: float,
    wire: str,
    seed: int,
    progress: Callable[[int], None],
) -> int:
    """Send every interaction; returns how many were acknowledged.

    Args:
        seconds: length of the stream; 0 sends as fast as the broker takes it.
        progress: called with the number sent so far, now and then.
    """
    from streaming.producer import replay

    return int(
        replay(stream, dataset.interactions, duration_s=seconds, wire=wire, seed=seed, progress=progress)
    )


class ReplayThread:
    """A replay beside other work; its failure is raised by `check`."""

    def __init__(self, stream: StreamConfig, dataset: Dataset, seconds: float, seed: int) -> None:
        self.produced = 0
        self.finished = False
        self._stream, self._dataset, self._seconds, self._seed = stream, dataset, seconds, seed
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def check(self) -> None:
        """Raise what ended the replay, if it failed."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.produced = send_all(
                self._stream, self._dataset, self._seconds, "arrow", self._seed, self._advance
            )
            self.finished = True
        except ReplayStopped:
            pass
        except Exception as error:
            self._error = error

    def _advance(self, produced: int) -> None:
        self.produced = produced
        if self._stop.is_set():
            raise ReplayStopped("the replay was stopped")


def run_replay(
    config: FreshetConfig,
    name_or_folder: str,
    seconds: float,
    events: int,
    partitions: int,
    wire: str,
    console: Console,
) -> dict[str, Any]:
    """Make the topics if they are missing, publish items and users, then send the events.

    Returns:
        `dataset`, `events_produced`, `items`, `users`, `topic`.
    Raises:
        UsageError: no such wire form.
        BrokerUnavailable, TopicError: the cluster does not answer or cannot take it.
    """
    if wire not in WIRES:
        raise UsageError(f"--wire {wire} is not known: choose one of {', '.join(WIRES)}")
    from streaming.producer import publish_catalogue
    from streaming.topics import create_topics

    # The broker first: a data set is not worth fetching for nobody.
    create_topics(config.stream, partitions)
    dataset = first_events(fetch_dataset(name_or_folder, console.print), events)
    publish_catalogue(config.stream, dataset.items, dataset.users)
    total = dataset.interactions.num_rows
    with console.status("replaying") as spinner:
        sent = send_all(
            config.stream,
            dataset,
            seconds,
            wire,
            config.seed,
            lambda done: spinner.update(f"replaying: {done:,} of {total:,} events"),
        )
    return {
        "dataset": name_or_folder,
        "events_produced": sent,
        "items": dataset.items.num_rows,
        "users": dataset.users.num_rows,
        "topic": config.stream.interactions_topic,
    }
