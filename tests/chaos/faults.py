"""Faults and their times: a seeded sequence that covers every kind before it repeats any."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# The numbered steps of a commit (cluster/checkpoints/checkpoint.py) and the ranks that take them.
COMMIT_POINTS = [
    ("begin", 0),
    ("snapshot", 0),
    ("snapshot", 1),
    ("write", 0),
    ("write", 1),
    ("written", 0),
    ("written", 1),
    ("manifest", 0),
    ("rename", 0),
    ("renamed", 0),
    ("offsets", 0),
    ("prune", 0),
]
# The steps of a publication (tests/chaos/versions.py), and whether every rank takes them.
PUBLISH_POINTS = [
    ("attempt", False),
    ("rows", True),
    ("items", True),
    ("shard", True),
    ("save", True),
    ("begin", False),
    ("commit", False),
    ("manifest", False),
    ("promote", False),
    ("pointer", False),
    ("prune", False),
]
# The steps of a delta (tests/chaos/versions.py), likewise.
DELTA_POINTS = [
    ("snapshot", True),
    ("encode", True),
    ("begin", False),
    ("changes", False),
    ("commit", False),
    ("manifest", False),
    ("end", True),
]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        target: `worker`, `all`, `driver`, `broker`, `commit`, `publish` (a worker inside one), `delta` (likewise),
            `refresh` (a rank of one), `enospc`, `truncate`, `bitflip`.
        point: where the rank kills itself (or its disk is full): `step` or a step of the commit, of the publication, or
            of the delta; empty: by time.
        rank: the rank that it strikes.
        occurrence: number of the visit of the point, from 1.
        delay_s: for faults from outside, seconds after the group was started.
        seed: of choices when it strikes.
    """

    target: str
    point: str = ""
    rank: int = 0
    occurrence: int = 1
    delay_s: float = 0.0
    seed: int = 0

    @property
    def inside(self) -> bool:
        """Whether the rank itself causes it."""
        return bool(self.point)

    @property
    def name(self) -> str:
        """For the report."""
        return (
            f"commit {self.point}"
            if self.target == "commit"
            else self.point
            if self._of_version
            else self.target
        )

    @property
    def _of_version(self) -> bool:
        return self.target in ("publish", "delta", "refresh")


def plan(seed: int | Sequence[int], world: int) -> Iterator[Fault]:
    """An endless sequence of faults, in rounds of 67, each in a new order."""
    rng = np.random.default_rng(seed)
    while True:
        round_ = _round(rng, world)
        yield from (round_[at] for at in rng.permutation(len(round_)))


def _round(rng: np.random.Generator, world: int) -> list[Fault]:
    def rank() -> int:
        return int(rng.integers(world))

    def few(most: int) -> int:
        return int(rng.integers(1, most + 1))

    def soon() -> float:
        return float(rng.uniform(0.0, 1.5))

    def chance() -> int:
        return int(rng.integers(2**31))

    commits = [Fault("commit", point, at % world, few(2)) for point, at in COMMIT_POINTS]
    steps = [Fault("worker", "step", rank(), few(10)) for _ in range(6)]
    timed = [Fault("worker", rank=rank(), delay_s=soon(), seed=chance()) for _ in range(2)]
    groups = [Fault(target, delay_s=soon()) for target in ("all", "driver") for _ in range(5)]
    disks = [Fault("enospc", point, rank(), few(2)) for point in ("write", "write")]
    disks += [Fault("enospc", "manifest", 0, 1)]
    damages = [
        Fault(t, "step", rank(), 3 + few(6), seed=chance()) for t in ("truncate", "bitflip") for _ in (0, 1)
    ]
    # Where every rank takes a step, one is killed in it by a publication and the other one by a refresh.
    versions = [
        Fault(target, f"{target} {point}", at % world if of_all else 0)
        for at, target in enumerate(("publish", "refresh"))
        for point, of_all in PUBLISH_POINTS
    ]
    deltas = [
        Fault("delta", f"delta {point}", at % world if of_all else 0)
        for at, (point, of_all) in enumerate(DELTA_POINTS)
    ]
    return [
        *commits,
        *versions,
        *deltas,
        *steps,
        *timed,
        *groups,
        *disks,
        *damages,
        Fault("broker", delay_s=soon()),
    ]
