"""One round: a stream, a run that is struck repeatedly until its end, and two counts of its events."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.black_box.counting import count_topic
from tests.chaos.black_box.processes import descendants, left_after, name_of, send
from tests.chaos.black_box.scene import RoundEnded, Scene
from tests.chaos.black_box.strikes import ENDS, GOES_ON
from tests.chaos.black_box.verdict import compare, read_used

_DISK = "64m"
_ORPHANS_S = 30.0


@dataclass(frozen=True)
class Plan:
    """The plan of a round.

    Attributes:
        seed: of choices during the round.
        strikes: names of the strikes; the last one ends the trainer.
        shared_ray: whether `freshet train` joins a `ray start` or starts its own Ray.
        wire: of the data set that is replayed.
    """

    seed: int
    strikes: tuple[str, ...]
    shared_ray: bool
    wire: str = "arrow"


@dataclass
class Result:
    """The result of a round.

    Attributes:
        struck: the strikes that were made, in order.
        hostile: unusable messages, by kind.
        audit: the output of `freshet checkpoint audit`.
        problems: everything that was not as expected.
    """

    plan: Plan
    struck: list[str] = field(default_factory=list)
    events: int = 0
    users: int = 0
    lost: int = 0
    doubled: int = 0
    dead_letters: int = 0
    hostile: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    stop_seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def plans(seed: int, strikes: Sequence[str] = (), per_round: int = 2) -> Iterator[Plan]:
    """An endless sequence of rounds; every strike is used before any is repeated.

    Args:
        seed: of all that is drawn.
        strikes: only these; all if it is empty.
        per_round: number of strikes in a round before the last one.
    """
    chance = random.Random(seed)
    on = [name for name in GOES_ON if name in strikes or not strikes]
    ends = [name for name in ENDS if name in strikes or not strikes] or ["terminate"]
    before, last = _deck(chance, on), _deck(chance, ends)
    number = chance.randrange(2)
    while True:
        number += 1
        some = [next(before) for _ in range(per_round if on else 0)]
        chosen = (*some, next(last))
        yield Plan(chance.randrange(2**31), chosen, number % 2 == 0, chance.choice(["arrow", "json"]))


def _deck(chance: random.Random, names: list[str]) -> Iterator[str]:
    while names:
        yield from chance.sample(names, len(names))


def play(
    plan: Plan, folder: Path, *, patience_s: float, rate: float, replayed: int, replay_s: float
) -> Result:
    """Play a round; problems are listed in the result."""
    started = time.monotonic()
    result = Result(plan)
    folder.mkdir(parents=True)
    scene = Scene(folder, plan.seed, shared_ray=plan.shared_ray, patience_s=patience_s, rate=rate)
    try:
        if "full_disk" in plan.strikes:
            _mount(scene.storage)
        scene.set_up(replayed, replay_s, plan.wire)
        for name in plan.strikes:
            (GOES_ON | ENDS)[name](scene)
            result.struck.append(name)
        _come_to_the_end(scene)
        _count(scene, result)
        scene.look_at_screens()
    except RoundEnded as ended:
        scene.problem(str(ended))
    finally:
        result.hostile = dict(scene.feeder.hostile) if hasattr(scene, "feeder") else {}
        result.stop_seconds = scene.stop_seconds
        scene.close()
        _end_orphans(scene)
        result.problems = scene.problems
        result.seconds = round(time.monotonic() - started, 1)
    return result


def _come_to_the_end(scene: Scene) -> None:
    """After the last events, the same command, bounded, must end on its own."""
    scene.feeder.stop()
    scene.must_end(scene.replay, "although all is sent", statuses=(0,))
    if scene.trainer.status is None:
        send([scene.trainer.pid], signal.SIGTERM)
        scene.must_end(scene.trainer, "when it is asked to", statuses=(0,))
    scene.start_trainer("train.bounded=true")
    if scene.trainer.wait(scene.patience_s) != 0:
        raise RoundEnded(
            f"the bounded run ended with {scene.trainer.status} (log: {scene.trainer.log}): "
            f"{scene.trainer.error() or scene.trainer.tail(4)}"
        )


def _count(scene: Scene, result: Result) -> None:
    """Compare both counts, and check everything else about a finished run."""
    used = scene.folder / "used.csv"
    audit, letters, status, _ = scene.answers(
        ("checkpoint audit", "--users", used),
        ("dead-letters list", "--samples", 1),
        ("status",),
        ("checkpoint verify",),
    )
    result.audit = audit or {}
    topic = count_topic(scene.bootstrap_servers, "interactions")
    found = compare(
        topic.by_user,
        read_used(used) if used.exists() else {},
        dead_letters=int((letters or {}).get("letters", -1)),
        hostile=topic.hostile,
    )
    result.events, result.users, result.lost, result.doubled = (
        found.events,
        found.users,
        found.lost,
        found.doubled,
    )
    result.dead_letters, result.messages = found.dead_letters, dict(topic.messages)
    scene.problems += found.problems()
    if (state := ((status or {}).get("progress") or {}).get("state")) != "finished":
        scene.problem(f"status says that the run is {state}, not finished")
    if not (status or {}).get("index_current"):
        scene.problem("no index version went live")


def _end_orphans(scene: Scene) -> None:
    """Descendants that still run are orphans."""
    left = left_after(descendants(os.getpid()), _ORPHANS_S)
    if left:
        names = ", ".join(f"{pid} {name_of(pid)[:80]}" for pid in left)
        scene.problem(f"{len(left)} orphans: {names}")
        send(left, signal.SIGKILL)


def _mount(folder: Path) -> None:
    """A small separate disk, which can be filled without affecting anything else."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
