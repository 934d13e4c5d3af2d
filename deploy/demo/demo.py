"""The whole loop in one command: broker, stream, training, index versions, recommendations.

It uses the other verbs: `train` runs as a subprocess with the run's settings file; broker, replay, accounting and
recommendations are the functions behind `broker`, `replay`, `status` and `recommend`.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.command.children import Child
from deploy.command.config_loading import load_config
from deploy.command.errors import FAILURE_STATUS, CommandError, last_line_of, one_line, unwrap
from deploy.command.output import plain, write_json
from deploy.command.sigterm import stop_on_signals
from deploy.command.terminal import Terminal
from deploy.datasets.choosing import fetch_dataset, first_events, recent_users
from deploy.demo.chaos import WorkerKiller
from deploy.demo.figures import DemoFigures
from deploy.demo.new_items import NewItems
from deploy.demo.options import DemoOptions
from deploy.demo.replay_thread import ReplayThread
from deploy.demo.report import print_report
from deploy.demo.settings import (
    SETTINGS_FILE,
    new_run_dir,
    own_bootstrap_servers,
    run_settings,
    write_settings,
)
from deploy.screen.display import Display
from deploy.screen.narration import narrate
from deploy.screen.progress import Progress, parse_progress
from deploy.screen.screen import DemoView
from deploy.verbs.recommend import recommend_to

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from deploy.datasets.datasets import Dataset

POLL_S = 0.5
USERS_SHOWN = 3
ITEMS_SHOWN = 5


class TrainerStalled(CommandError):
    """The trainer is alive but makes no progress; names its log."""


class Demo:
    """One run. `run` returns its figures; everything it starts is stopped in any case."""

    def __init__(self, options: DemoOptions, display: Display) -> None:
        self.options = options
        self.display = display
        self.figures = DemoFigures(chaos=options.chaos)
        self._killer = WorkerKiller() if options.chaos else None
        self._started = self._moved = time.monotonic()

    def run(self) -> DemoFigures:
        """Run everything from the data to the recommendations.

        Raises:
            CommandError: a part failed; the message names its log.
        """
        dataset = self._dataset()
        run_dir = new_run_dir(self.options.root)
        self.figures.run_dir = str(run_dir)
        with ExitStack() as stack:
            config = self._start_broker(stack, run_dir, dataset.interactions.num_rows)
            new_items = NewItems(config, dataset)
            self._publish_catalogue(config, new_items.known_before(dataset))
            trainer = stack.enter_context(trainer_child(run_dir, take_over=self.options.take_over))
            self._wait_for_workers(config, trainer)
            with new_items:
                self._stream(stack, config, dataset, trainer, new_items)
            self._tell(new_items)
            self._finish(config, dataset)
        return self.figures

    def _dataset(self) -> Dataset:
        self.display.stage("getting the data")
        dataset = fetch_dataset(self.options.dataset, progress=self.display.say)
        dataset = first_events(dataset, self.options.events)
        self.display.view.planned = dataset.interactions.num_rows
        self.display.say(f"{self.options.dataset}: {dataset.interactions.num_rows:,} events, in time order")
        return dataset

    def _start_broker(self, stack: ExitStack, run_dir: Path, events: int) -> FreshetConfig:
        servers = own_bootstrap_servers(self.options)
        shared = bool(servers)
        if shared:
            self.figures.broker = f"existing cluster at {servers}"
        else:
            servers = self._start_local_broker(stack, run_dir)
        decided = run_settings(run_dir, servers, events, shared_broker=shared)
        return write_settings(self.options, run_dir, decided)

    def _start_local_broker(self, stack: ExitStack, run_dir: Path) -> str:
        from streaming.local_broker.broker import LocalBroker

        self.display.stage("starting Apache Kafka")
        broker = LocalBroker(
            run_dir / "broker", log_path=run_dir / "logs" / "broker.log", progress=self._fetching
        )
        stack.enter_context(broker)
        self.display.say(f"Apache Kafka is ready on {broker.bootstrap_servers}")
        return broker.bootstrap_servers

    def _fetching(self, done: int, total: int, name: str) -> None:
        self.display.stage(f"fetching Apache Kafka, {done} of {total} files")

    def _publish_catalogue(self, config: FreshetConfig, dataset: Dataset) -> None:
        from streaming.kafka.topics import create_topics
        from streaming.producing.catalogue import publish_catalogue

        self.display.stage("creating topics")
        create_topics(config.stream, self.options.partitions)
        published = publish_catalogue(config.stream, dataset.items, dataset.users)
        self.display.say(
            f"a topic of {self.options.partitions} partitions; {published.items:,} items and "
            f"{published.users:,} users are on theirs"
        )

    def _wait_for_workers(self, config: FreshetConfig, trainer: Child) -> None:
        self.display.stage("starting Ray and its workers")
        while self._tick(config, trainer).state != "training":
            if trainer.check():
                raise CommandError(f"the trainer exited before training began (log: {trainer.log_path})")
            time.sleep(POLL_S)

    def _stream(
        self,
        stack: ExitStack,
        config: FreshetConfig,
        dataset: Dataset,
        trainer: Child,
        new_items: NewItems,
    ) -> None:
        self.display.stage("streaming and training")
        seconds, seed = self.options.seconds, config.seed
        replay = stack.enter_context(ReplayThread(config.stream, dataset, seconds, seed, new_items.produced))
        stack.callback(trainer.ask_to_stop)  # stops while the replay waits for its acknowledgements
        while not trainer.check():
            self.display.view.produced = replay.produced
            replay.check()
            if replay.finished and self.figures.stream_s != self.figures.stream_s:  # NaN: not recorded yet
                self.figures.stream_s = replay.seconds
                self.display.say(f"all {replay.produced:,} events are in the topic")
                self.display.stage("training on the rest")
            if self._tick(config, trainer).step > 0:
                replay.release()
            self._tell(new_items)
            time.sleep(POLL_S)
        replay.check()
        self.figures.events_produced = self.display.view.produced = replay.produced

    def _tell(self, new_items: NewItems) -> None:
        for sentence in new_items.take_news():
            self.display.view.new_item = sentence.removeprefix("new item: ")
            self.display.say(sentence)
        self.figures.take_new_items(new_items.count, new_items.seconds)

    def _tick(self, config: FreshetConfig, trainer: Child) -> Progress:
        """Read the progress once: report changes, let chaos act, and detect a stall."""
        from cluster.observability.progress_file import read_progress

        before, now = self.display.view.progress, parse_progress(read_progress(Path(config.storage_path)))
        self.display.view.progress = now
        for sentence in narrate(before, now):
            self.display.say(sentence)
        if replace(now, time_s=0.0, pids=()) != replace(before, time_s=0.0, pids=()):
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > self.options.stall_s:
            raise TrainerStalled(
                f"the trainer (pid {trainer.pid}) has shown no progress for {self.options.stall_s:.0f} s: "
                f"{last_line_of(trainer.log_path)} (log: {trainer.log_path}; setting: --stall-seconds)"
            )
        if self._killer is not None and (done := self._killer.observe(now)):
            self.figures.killed_pid = self._killer.killed_pid
            self.display.say(done)
            self.display.stage("a worker is dead: Ray Train starts the group again")
        if now.restarts > before.restarts:
            self.display.stage("streaming and training again")
        self.display.update()
        return now

    def _finish(self, config: FreshetConfig, dataset: Dataset) -> None:
        from cluster.audit.exactly_once import verify_exactly_once

        self._read_last_progress(config)
        self.display.stage("counting the topic")
        accounting: dict[str, Any] = plain(verify_exactly_once(config, None))
        self.figures.take_progress(self.display.view.progress)
        self.figures.take_accounting(accounting)
        self.display.say(
            f"the topic holds {self.figures.events_in_topic:,} events: {self.figures.events_lost} lost, "
            f"{self.figures.events_doubled} doubled"
        )
        self.display.stage("recommending")
        users = recent_users(dataset, USERS_SHOWN)
        self.figures.recommendations = recommend_to(config, users, ITEMS_SHOWN)
        self.figures.wall_s = time.monotonic() - self._started
        self.figures.judge()
        self.display.stage("finished")

    def _read_last_progress(self, config: FreshetConfig) -> None:
        """Read the progress after the trainer has ended; it may be newer than the last tick."""
        from cluster.observability.progress_file import read_progress

        before, now = self.display.view.progress, parse_progress(read_progress(Path(config.storage_path)))
        self.display.view.progress = now
        for sentence in narrate(before, now):
            self.display.say(sentence)


def trainer_child(run_dir: Path, *, take_over: bool = False) -> Child:
    """`freshet train` with the run's settings, as a subprocess that logs into the run's folder."""
    return Child(
        "the trainer",
        [
            sys.executable,
            "-m",
            "deploy",
            "train",
            "--config",
            str(run_dir / SETTINGS_FILE),
            "--json",
            str(run_dir / "train.json"),
            *(["--take-over"] if take_over else []),
        ],
        run_dir / "logs" / "train.log",
        {"PYTHONUNBUFFERED": "1"},
    )


def run_demo(options: DemoOptions) -> int:
    """The verb `demo`: run it, print and write the figures; returns the exit status.

    The status is 0 if all figures are as expected, else 1 (the figures are still written).

    Raises:
        CommandError: a part failed before there were figures.
    """
    # A mistyped setting must be refused before anything is started or fetched.
    load_config(options.config_file, list(options.overrides or ()))
    display = Display(DemoView(produced=0))
    demo = Demo(options, display)
    try:
        with display, stop_on_signals():
            figures = demo.run()
    except Exception as error:
        # Keep the figures measured so far; the caller reports the error.
        demo.figures.problems.append(one_line(unwrap(error)))
        _write_figures(demo.figures, options.json_path)
        raise
    _write_figures(figures, options.json_path)
    print_report(Terminal(soft_wrap=True), figures)
    return 0 if figures.ok else FAILURE_STATUS


def _write_figures(figures: DemoFigures, json_path: Path | None) -> None:
    if figures.run_dir:
        write_json(Path(figures.run_dir) / "demo.json", figures)
    write_json(json_path, figures)
