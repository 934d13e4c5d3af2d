"""A broker, a Ray, a stream and a trainer, as a user runs them at a terminal; the targets of strikes."""

import random
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.black_box.commands import Command, problem_of_failure, ray_head, read_json
from tests.chaos.black_box.feeding import Feeder, write_dataset
from tests.chaos.black_box.processes import is_alive, left_after, name_of, send, wait_for

PARTITIONS = 4
WORKERS = 2
_RAY_STARTED = "Ray runtime started."
_STOP_S = 60.0
# Messages that Ray and other libraries would print among a run's own lines.
_NOISE = (
    *("PlacementGroupCleaner", "SIGTERM handler", "Could not load library", "Reporting training result"),
    *("Traceback (most recent call last)", "KafkaConnection"),
)

Progress = dict[str, Any]


class RoundEnded(AssertionError):
    """A round cannot continue; the message says what did not happen."""


class Scene:
    """One round's surroundings.

    Attributes:
        problems: problems so far, as sentences.
        trainer: the `freshet train` whose run is judged.
        ray: processes of a `ray start --head`; None if `freshet train` starts its own Ray.
        broker_pid: the Kafka process below `freshet broker`.
        stop_seconds: how long a run took to end after a stop request.
    """

    def __init__(self, folder: Path, seed: int, *, shared_ray: bool, patience_s: float, rate: float) -> None:
        self.folder, self.patience_s = folder, patience_s
        self.chance = random.Random(seed)
        self.problems: list[str] = []
        self.storage = folder / "storage"
        self.stop_seconds: list[float] = []
        self.ray: Command | None = None
        self._seed, self._shared_ray, self._rate = seed, shared_ray, rate
        self._commands: list[Command] = []
        self._environment: dict[str, str] = {}
        self._port = 0
        self._earlier_run = ""

    def problem(self, text: str) -> None:
        """Record a problem; the round can continue."""
        if text:
            self.problems.append(text)

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address; it keeps its port."""
        return f"127.0.0.1:{self._port}"

    # Commands

    def freshet(self, verb: str, *words: object) -> Command:
        """Start a verb with this round's settings."""
        log = self.folder / f"{len(self._commands):02d}-{'-'.join(verb.split())}.log"
        command = Command(
            log, "freshet", *verb.split(), "--config", self.settings, *words, environment=self._environment
        )
        self._commands.append(command)
        return command

    def answers(self, *questions: tuple[object, ...]) -> list[Any]:
        """Run verbs side by side; returns the JSON of each. A status other than 0 is a problem."""
        asked = []
        for verb, *words in questions:
            out = self.folder / f"{len(self._commands):02d}-{'-'.join(str(verb).split())}.json"
            asked.append((self.freshet(str(verb), "--json", out, *words), out))
        for command, _ in asked:
            if command.wait(self.patience_s) != 0:
                self.problem(
                    f"{command.name()} ended with {command.status} (log: {command.log}): {command.tail(2)}"
                )
        return [read_json(out) for _, out in asked]

    # The stage

    def set_up(self, events: int, seconds: float, wire: str) -> None:
        """Start broker, replay and feeder, a Ray if it is shared, and finally the trainer."""
        self.settings = self.folder / "settings.yaml"
        self._write_settings("127.0.0.1:1")
        if self._shared_ray:
            self._begin_ray()  # it takes as long as Kafka, so both start side by side
        self.start_broker()
        self._write_settings(self.bootstrap_servers)
        write_dataset(self.folder / "data", events, self._seed)
        self.replay = self.freshet(
            *("replay", "--dataset", self.folder / "data", "--seconds", seconds),
            *("--wire", wire, "--partitions", PARTITIONS),
        )
        self.feeder = Feeder(self.bootstrap_servers, "interactions", PARTITIONS, self._rate, self._seed)
        self.feeder.start()
        if self._shared_ray:
            self._await_ray()
        self.start_trainer()

    def _write_settings(self, servers: str) -> None:
        sizes = {"dim": 8, "layers": 1, "heads": 2, "augmented_dim": 4, "uniform_negatives": 10}
        settings = {
            "stream": {"bootstrap_servers": servers, "history_length": 20, "seen_length": 40},
            "model": {**sizes, "history_length": 20},
            "train": {
                "workers": WORKERS,
                "batch_events": 256,
                "checkpoint_every_s": 1.5,
                "publish_every_s": 5,
                "checkpoint_full_every": 4,
            },
            "progressive": {"sample_fraction": 0.1},
            "device": "cpu",
            "storage_path": str(self.storage),
        }
        self.settings.write_text(yaml.safe_dump(settings))

    def start_broker(self) -> None:
        """Start `freshet broker`, first on a free port, later on the same port and data."""
        ready = self.folder / "broker.json"
        ready.unlink(missing_ok=True)
        self.broker = self.freshet(
            *("broker", "--dir", self.folder / "kafka", "--port", self._port),
            *("--partitions", PARTITIONS, "--json", ready),
        )
        self.wait(lambda: read_json(ready) is not None, self.broker, "answers")
        said = read_json(ready)
        self.broker_pid = int(said["pid"])
        self._port = int(said["bootstrap_servers"].rpartition(":")[2])

    def start_ray(self) -> None:
        """`ray start --head` with room for a trainer, a successor and a refresh."""
        self._begin_ray()
        self._await_ray()

    def _begin_ray(self) -> None:
        # Ray's sockets are in its temporary folder, and their paths must be short.
        temporary = Path(tempfile.mkdtemp(prefix="fr", dir="/tmp"))
        log = self.folder / f"{len(self._commands):02d}-ray.log"
        self.ray, self._environment = ray_head(log, 3 * WORKERS, temporary)
        self._commands.append(self.ray)

    def _await_ray(self) -> None:
        started: Command | None = self.ray
        assert started is not None
        self.wait(lambda: _RAY_STARTED in started.log.read_text(), started, "has started")

    def start_trainer(self, *words: object) -> None:
        """Start `freshet train`, for the first time or again after it has ended."""
        self._earlier_run = self.progress().get("run_id", "")
        self.trainer = self.freshet("train", *words)

    # What is seen of the run

    def progress(self) -> Progress:
        """The run's progress.json; empty before the first one."""
        try:
            return read_json(self.storage / "progress.json") or {}
        except (ValueError, OSError):
            return {}

    def training(self, steps: int = 5) -> Progress:
        """Wait until the trainer has taken some steps and has a checkpoint; returns its progress."""
        seen: dict[str, int] = {}

        def far_enough() -> bool:
            said = self.progress()
            if said.get("state") != "training" or said.get("run_id") == self._earlier_run:
                return False
            first = seen.setdefault(said["run_id"], said["step"])
            return bool(said["checkpoint"]) and said["step"] >= first + steps

        self.wait(far_enough, self.trainer, f"trains {steps} steps")
        return self.progress()

    def goes_on_from(self, before: Progress, *, same_group: bool) -> Progress:
        """Wait until the same command has trained further than before, with the same workers or new ones."""

        def is_beyond() -> bool:
            said = self.progress()
            new = said.get("attempt") != before["attempt"]
            return (
                said.get("state") == "training" and (same_group or new) and said["step"] > before["step"] + 2
            )

        self.wait(is_beyond, self.trainer, f"goes on from step {before['step']}")
        now = self.progress()
        if now.get("run_id") != before["run_id"]:
            self.problem(f"run {now.get('run_id')} writes where run {before['run_id']} trains")
        if same_group and now["attempt"] != before["attempt"]:
            self.problem(f"the workers of {self.trainer.log} had to start again: attempt {now['attempt']}")
        return now

    def wait(self, holds: Callable[[], bool], command: Command, what: str) -> None:
        """Wait until a condition holds.

        Raises:
            RoundEnded: the command ended before, or it took too long.
        """
        wait_for(lambda: holds() or command.status is not None, self.patience_s)
        if holds():
            return
        how = f"has ended with {command.status}" if command.status is not None else "is no further"
        raise RoundEnded(
            f"{command.name()} {how} before it {what} (patience {self.patience_s:g} s, log: {command.log}): "
            f"{command.error() or command.tail(4)}"
        )

    def must_end(self, command: Command, why: str, *, statuses: tuple[int, ...] | None = None) -> None:
        """Wait until a command has ended with one of the statuses, or with one line that says why."""
        status = command.wait(self.patience_s)
        if status is None:
            self.problem(
                f"{command.name()} does not end {why} within {self.patience_s:g} s (log: {command.log})"
            )
            send(command.family(), signal.SIGKILL)
        elif statuses is not None and status not in statuses:
            self.problem(
                f"{command.name()} ended {why} with {status} (log: {command.log}): {command.tail(2)}"
            )
        elif status > 0 and statuses is None:
            self.problem(problem_of_failure(command))
        elif status <= 0 and statuses is None:
            self.problem(
                f"{command.name()} ended {why} with {status}, not with an error (log: {command.log})"
            )

    def must_be_gone(self, pids: set[int], why: str) -> None:
        """Check that processes end on their own; others are reported as a problem and killed."""
        left = left_after(pids, _STOP_S)
        if left:
            self.problem(f"{len(left)} processes live on after {why}: {_described(left)}")
            send(left, signal.SIGKILL)

    def look_at_screens(self) -> None:
        """Check that commands print only their own messages, not libraries' messages for developers."""
        for command in self._commands:
            found = [noise for noise in _NOISE if noise in command.text()]
            if found and command is not self.ray:
                self.problem(f"{command.name()} prints {', '.join(found)} (log: {command.log})")

    def close(self) -> None:
        """End what still runs, by process id."""
        for command in reversed(self._commands):
            if command.status is None:
                send([command.pid], signal.SIGCONT)
                send([command.pid], signal.SIGTERM)
                if command.wait(_STOP_S) is None:
                    send(command.family(), signal.SIGKILL)
        if self.storage.is_mount():
            subprocess.run(["umount", str(self.storage)], check=True)


def _described(pids: list[int]) -> str:
    return ", ".join(f"{pid} {name_of(pid)[:80]}" for pid in pids if is_alive(pid))
