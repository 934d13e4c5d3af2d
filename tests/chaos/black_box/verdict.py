"""Lost and doubled events, from two counts that share no code: a plain consumer's and Freshet's own."""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """The two counts side by side.

    Attributes:
        events: usable ones in the topic.
        users: users with events in either count.
        lost: events that were used less often than they occur.
        doubled: events that were used more often than they occur.
        dead_letters: number of letters in the dead-letter topic.
        hostile: expected number of letters.
    """

    events: int
    users: int
    lost: int
    doubled: int
    dead_letters: int
    hostile: int

    def problems(self) -> list[str]:
        """Problems, as sentences; empty if there are none."""
        said = []
        if self.lost or self.doubled:
            said.append(f"{self.lost} events were lost and {self.doubled} doubled, of {self.events}")
        if self.dead_letters != self.hostile:
            said.append(f"{self.dead_letters} dead letters instead of {self.hostile}")
        if self.events == 0:
            said.append("the topic is empty: nothing was shown")
        return said


def compare(
    topic: Mapping[int, int], used: Mapping[int, int], *, dead_letters: int, hostile: int
) -> Comparison:
    """Compare each user's used events with those in the topic."""
    there, taken = Counter(topic), Counter(used)
    return Comparison(
        there.total(),
        len(there | taken),
        (there - taken).total(),
        (taken - there).total(),
        dead_letters,
        hostile,
    )


def read_used(path: Path) -> dict[int, int]:
    """The file that `freshet checkpoint audit --users FILE.csv` writes."""
    with path.open(newline="") as file:
        return {int(row["user_id"]): int(row["events"]) for row in csv.DictReader(file)}
