"""The black-box campaign: documented commands, an independent consumer that counts, and faults of every kind.

Every round has a broker, a stream in both wire forms with hostile messages, and `freshet train`. It is struck while it
trains, restarted where a user would restart it, and runs to its end. Then the events of each user, counted by a plain
consumer, are compared with those that `freshet checkpoint audit` reports as used.

python -m tests.chaos.black_box --rounds 16 --report chaos.json [--seed 1] [--strikes worker,broker,driver]
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from tests.chaos.black_box.processes import adopt_orphans
from tests.chaos.black_box.round import Plan, Result, plans, play
from tests.chaos.black_box.strikes import ENDS, GOES_ON


@dataclass
class Report:
    """The results of a campaign; rounds are `round.Result` objects."""

    seed: int
    wanted: int
    rounds: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def passed(self) -> bool:
        """Whether all rounds were played without problems."""
        return len(self.rounds) == self.wanted and not any(one.problems for one in self.rounds)

    def text(self) -> str:
        """As JSON."""
        by_fault = Counter(name for one in self.rounds for name in one.struck)
        hostile: Counter[str] = Counter()
        for one in self.rounds:
            hostile.update(one.hostile)
        return json.dumps(
            {
                "passed": self.passed(),
                "seed": self.seed,
                "rounds_played": len(self.rounds),
                "by_fault": dict(sorted(by_fault.items())),
                "hostile": dict(sorted(hostile.items())),
                **{
                    name: sum(getattr(one, name) for one in self.rounds)
                    for name in ("events", "lost", "doubled", "dead_letters")
                },
                "problems": [problem for one in self.rounds for problem in one.problems],
                "seconds": self.seconds,
                "rounds": [asdict(one) for one in self.rounds],
            },
            indent=2,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Play the rounds; returns 0 if there were no problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strikes", default="", help=f"only these of {', '.join(GOES_ON | ENDS)}")
    parser.add_argument("--per-round", type=int, default=2, help="strikes of a round before its last one")
    parser.add_argument("--rate", type=float, default=150.0, help="events a second, beside the replay")
    parser.add_argument("--replayed", type=int, default=4000, help="events of the replay")
    parser.add_argument("--replay-seconds", type=float, default=30.0, help="how long it takes")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds that anything may take")
    parser.add_argument("--folder", type=Path, help="where the rounds' files and logs go")
    parser.add_argument("--script", default="", help="one round of just these strikes, on a shared Ray")
    parser.add_argument("--own-ray", action="store_true", help="with --script: on a Ray of the run's own")
    arguments = parser.parse_args(argv)
    strikes, script = (_names(parser, text) for text in (arguments.strikes, arguments.script))
    wanted = list(islice(plans(arguments.seed, strikes, arguments.per_round), arguments.rounds))
    if script:
        wanted = [Plan(arguments.seed, script, shared_ray=not arguments.own_ray)]
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    adopt_orphans()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="freshet-black-box-"))
    report, started = Report(arguments.seed, len(wanted)), time.monotonic()
    for number, plan in enumerate(wanted):
        where = folder / f"round-{number:02d}"
        print(f"round {number}: {', '.join(plan.strikes)}; {plan}", file=sys.stderr, flush=True)
        result = play(
            plan,
            where,
            patience_s=arguments.patience,
            rate=arguments.rate,
            replayed=arguments.replayed,
            replay_s=arguments.replay_seconds,
        )
        report.rounds.append(result)
        report.seconds = round(time.monotonic() - started, 1)
        arguments.report.write_text(f"{report.text()}\n")
        print(_line(number, result), file=sys.stderr, flush=True)
        if not result.problems:
            shutil.rmtree(where)
    if not report.passed():
        print(f"failed; {folder} is kept", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _names(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := set(names) - set(GOES_ON | ENDS):
        parser.error(f"no such strikes: {', '.join(sorted(unknown))}")
    return names


def _line(number: int, result: Result) -> str:
    said = [
        f"round {number}: {result.seconds:.0f} s, {result.events} events, {result.lost} lost, "
        f"{result.doubled} doubled, {result.dead_letters} dead letters, struck {', '.join(result.struck)}"
    ]
    return "\n".join([*said, *(f"  PROBLEM {problem}" for problem in result.problems)])


if __name__ == "__main__":
    sys.exit(main())
