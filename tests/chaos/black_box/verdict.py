"""Lost and doubled, by two counts that share no code: a plain consumer's, and what Freshet says it has used."""

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
        users: who have any, in either count.
        lost: events that were used less often than they are there.
        doubled: events that were used more often.
        dead_letters: what lies in the dead-letter topic.
        hostile: what should.
    """

    events: int
    users: int
    lost: int
    doubled: int
    dead_letters: int
    hostile: int

    def problems(self) -> list[str]:
        """What is wrong, in sentences; nothing if all is as it should be."""
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
    """Hold what was used of each user against what the topic has of them."""
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
