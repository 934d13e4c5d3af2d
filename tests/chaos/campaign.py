"""Strikes runs on a bounded log until each has finished, and compares their states with that of an undisturbed run.

Further runs continue with another number of ranks after every fault. That changes the order of float sums, so only the
parts of their state that depend on the log alone are compared; lost and doubled events are counted in all runs.

python -m tests.chaos.campaign --kills 500 --report chaos.json [--rank-changes 50] [--seed 1] [--world 2]
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaProducer

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import State, read_state
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.parts.waiting import PREFIX as WAITING
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.tables.config import TableConfig
from model.config import ModelConfig
from model.features import ITEM, SOURCE, USER
from retrieval.config import IndexConfig
from retrieval.storage.durable import replace_durably
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.producer import EventProducer
from tests.chaos.faults import Fault, plan
from tests.chaos.group import drive, is_alive, read_status, wait_until_gone
from tests.chaos.verdict import FINISHED, DiedOfItself, Ended, read_ended, struck
from tests.chaos.versions import leftovers, require_whole
from tests.support.state_digests import digests

EVENTS, USERS, ITEMS = 4000, 60, 80
SIZES = (1, 2, 3)
_ATTEMPT_TIMEOUT_S = 400.0
# Parts of the state that depend on the log alone, not on the number of ranks.
_OF_THE_LOG = ("users ", "ledger ", "admission-", "catalogue-")
_log = logging.getLogger(__name__)


@dataclass
class Report:
    """The results of a campaign.

    Attributes:
        kills: faults that struck a group with a constant number of ranks; damage counts if a file was harmed.
        by_target: these faults by target.
        rank_changes: other faults, after which a group resumed with another number of ranks.
        by_sizes: these faults by the numbers of ranks before and after.
        resumed: groups that resumed from a checkpoint after a fault.
        limits: effects of the tables' limits in the undisturbed run: rows that expired and were evicted; at its end,
            keys that wait for a row, and rows (all of them by admission).
        runs: number of finished runs.
        digests_equal: whether every run with a constant number of ranks ended in the undisturbed run's state.
        log_parts_equal: whether the others did in the parts that depend on the log alone: histories, ledgers, windows,
            catalogues.
        events_lost, events_doubled: of all runs together, by comparing the ledger with the topic.
        differences: parts of the state that differ but should not, by run.
        finished: whether all requested faults have struck. The report is written after every run.
    """

    seed: int
    world: int
    kills: int = 0
    by_target: Counter[str] = field(default_factory=Counter)
    rank_changes: int = 0
    by_sizes: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    limits: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    digests_equal: bool = True
    log_parts_equal: bool = True
    events_lost: int = 0
    events_doubled: int = 0
    differences: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    def passed(self) -> bool:
        """Whether all faults have struck, and nothing was lost, doubled or different."""
        return self.finished and self.as_undisturbed() and self.events_lost == self.events_doubled == 0

    def as_undisturbed(self) -> bool:
        """Whether every state so far equals the undisturbed run's in the parts that must be equal."""
        return self.digests_equal and self.log_parts_equal

    def text(self) -> str:
        """As JSON."""
        return json.dumps(vars(self) | {"passed": self.passed()}, indent=2)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: whether it resumed from a checkpoint, its fault struck, and the run finished."""

    resumed: bool
    struck: bool
    finished: bool


class Campaign:
    """One log, one undisturbed run on it, and as many disturbed runs as needed."""

    def __init__(self, broker: LocalBroker, folder: Path, seed: int = 1, world: int = 2) -> None:
        self.report = Report(seed, world)
        self._broker, self._folder, self._world = broker, folder, world
        self._context = multiprocessing.get_context("forkserver")
        os.environ["OMP_NUM_THREADS"] = "1"  # for the server that forks
        self._context.set_forkserver_preload(["tests.chaos.group", "tests.support.warm_kernels"])
        self._stream = StreamConfig(
            bootstrap_servers=broker.bootstrap_servers,
            interactions_topic=f"chaos-{seed}",
            items_topic=f"chaos-{seed}-items",
            users_topic=f"chaos-{seed}-users",
            consumer_group=f"chaos-{seed}",
            history_length=20,
            seen_length=40,
            positive_actions=["like"],
            negative_actions=["skip"],
            user_attributes=["gender"],
        )
        create_topics(self._stream, partitions=2 * world)
        fill_topics(self._stream, seed)
        self._faults = plan(seed, world)
        self._next = next(self._faults)
        self._refreshes = count(1)
        # A broker that comes back ends no group, so no group could resume with another number of ranks.
        self._changes = (
            f for f in plan([seed, max(SIZES)], max(SIZES)) if f.target not in ("broker", "refresh")
        )
        self._next_change = next(self._changes)
        self._sizes = np.random.default_rng([seed, 0])

    def run(
        self, kills: int, rank_changes: int = 0, after_run: Callable[[Report], None] = lambda report: None
    ) -> Report:
        """Strike until enough faults of both kinds have struck and the last run has finished."""
        started = time.monotonic()

        def tell() -> None:
            self.report.seconds = round(time.monotonic() - started, 1)
            self.report.finished = self.report.kills >= kills and self.report.rank_changes >= rank_changes
            after_run(self.report)

        config = self._undisturbed = self._config("undisturbed")
        assert self._attempt(config, 0, None, self._world).finished, f"see {config.storage_path}/rank-*.log"
        undisturbed = read_state(_store(config).newest())
        self._expected = digests(undisturbed)
        self.report.limits = _limits_effect(undisturbed, Path(config.storage_path))
        while self.report.kills < kills:
            config = self._config(f"run-{self.report.runs}")
            self._strike_until_finished(config, kills)
            self.report.digests_equal &= self._is_as_expected(config, ("",))
            tell()
        while self.report.rank_changes < rank_changes:
            config = self._config(f"run-{self.report.runs}")
            self._change_until_finished(config, rank_changes)
            self.report.log_parts_equal &= self._is_as_expected(config, _OF_THE_LOG)
            tell()
        return self.report

    def _config(self, name: str) -> FreshetConfig:
        return FreshetConfig(
            stream=self._stream,
            model=ModelConfig(
                dim=8,
                layers=1,
                heads=2,
                augmented_dim=4,
                uniform_negatives=10,
                history_length=20,
                dropout=0.2,
            ),
            train=TrainConfig(
                batch_events=64,
                bounded=True,
                publish_every_s=0,
                checkpoint_every_s=0.05,
                checkpoint_full_every=3,
                checkpoint_full_share=20.0,
            ),
            index=IndexConfig(delta_every_s=0.02),
            table=TableConfig(admit_after=4, expire_after_s=150, max_rows=70, sweep_every=4),
            progressive=ProgressiveConfig(sample_fraction=0.3, bin_events=200, served_cpu_share=0.0),
            device="cpu",
            storage_path=str(self._folder / name),
        )

    def _strike_until_finished(self, config: FreshetConfig, kills: int) -> None:
        for attempt in count():
            while self._next.target == "refresh" and self.report.kills < kills:
                self._strike_refresh(self._next)
                self._struck()
            fault = self._next if self.report.kills < kills else None
            ending = self._attempt(config, attempt, fault, self._world)
            if ending.struck:
                self._struck()
            elif not ending.finished:
                self._next = _later(self._next)
            if ending.finished:
                assert leftovers(config) == []
                return

    def _struck(self) -> None:
        self.report.kills += 1
        self.report.by_target[self._next.name] += 1
        self._next = next(self._faults)

    def _strike_refresh(self, fault: Fault) -> None:
        """A refresh of the undisturbed run, which changes nothing of its state, is killed; the next one is clean."""
        config, live = self._undisturbed, require_whole(self._undisturbed)
        ended = self._group(config, next(self._refreshes), fault, self._world, refreshes=True)
        assert struck(fault, ended), f"{fault} has not struck a refresh: {ended}"
        assert require_whole(config) == live or fault.point == "refresh prune"
        number = next(self._refreshes)
        ended = self._group(config, number, None, self._world, refreshes=True)
        assert ended.outcome == FINISHED, f"a refresh after {fault} failed: {ended}"
        version = json.loads(Path(config.storage_path, f"refresh-{number}.json").read_text())["version"]
        assert require_whole(config) == version != live
        assert leftovers(config) == []

    def _change_until_finished(self, config: FreshetConfig, changes: int) -> None:
        for attempt in count():
            newest = _store(config).newest()
            before = self._world if newest is None else int(newest.manifest["workers"])
            ranks, fault = before, None
            if self.report.rank_changes < changes:
                ranks = int(self._sizes.choice([size for size in SIZES if size != before]))
                fault = replace(self._next_change, rank=self._next_change.rank % ranks)
            ending = self._attempt(config, attempt, fault, ranks)
            if ending.resumed and ranks != before:
                self.report.rank_changes += 1
                self.report.by_sizes[f"{before} to {ranks}"] += 1
            if ending.struck:
                self._next_change = next(self._changes)
            elif not ending.finished:
                self._next_change = _later(self._next_change)
            if ending.finished:
                return

    def _attempt(self, config: FreshetConfig, number: int, fault: Fault | None, ranks: int) -> Ending:
        """One group and one fault."""
        if fault is not None and fault.target in ("publish", "delta"):
            config = replace(config, train=replace(config.train, publish_every_s=0.05))
        before = _store(config).names()
        ended = self._group(config, number, fault, ranks)
        folder = Path(config.storage_path)
        try:
            has_struck = struck(fault, ended)
        except DiedOfItself as bug:
            raise DiedOfItself(f"attempt {number} with {fault}: {bug}; see {folder}/rank-*.log") from bug
        require_whole(config)
        resumed = bool(before) and "resumed from" in _said(folder, number)
        self.report.resumed += resumed
        if fault is not None and has_struck and fault.target in ("truncate", "bitflip"):
            has_struck = self._damage(config, fault)
        return Ending(resumed, has_struck, ended.outcome == FINISHED)

    def _group(
        self, config: FreshetConfig, number: int, fault: Fault | None, ranks: int, refreshes: bool = False
    ) -> Ended:
        folder = Path(config.storage_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "status.json").unlink(missing_ok=True)
        started = time.monotonic()
        driver = self._context.Process(target=drive, args=(config, ranks, folder, number, fault, refreshes))
        driver.start()
        struck_at_s = self._from_outside(fault, folder, number, started)
        while driver.is_alive() and time.monotonic() - started < _ATTEMPT_TIMEOUT_S:
            driver.join(0.02)
        if driver.is_alive():
            os.kill(driver.pid, signal.SIGKILL)
            raise AssertionError(f"attempt {number} with {fault} hangs; see {folder}/rank-*.log")
        return read_ended(folder, number, read_status(folder), struck_at_s)

    def _from_outside(self, fault: Fault | None, folder: Path, number: int, started: float) -> float | None:
        """Strike targets that are struck by time; returns the time, or None if there was nothing left to strike."""
        if fault is None or fault.inside:
            return None
        while not (status := read_status(folder)):
            assert time.monotonic() - started < _ATTEMPT_TIMEOUT_S, f"no driver has started in {folder}"
            time.sleep(0.005)
        # A group that finds no broker at its start ends with an error; one that trains must wait for it.
        trains = folder / f"trains-{number}.json"
        while fault.target == "broker" and not trains.exists() and is_alive(status.get("driver", 0)):
            time.sleep(0.005)
        time.sleep(max(0.0, started + fault.delay_s - time.monotonic()))
        pids = read_status(folder).get("pids") or []
        victims = {
            "worker": pids[fault.rank : fault.rank + 1],
            "all": pids,
            "driver": [status.get("driver")],
            "broker": pids,
        }[fault.target]
        if not pids or not all(map(is_alive, victims)):
            return None
        struck_at_s = time.monotonic()
        if fault.target == "broker":
            self._broker.kill()
            time.sleep(0.2)
            self._broker.start()
            return struck_at_s
        arrived = [_kill(pid) for pid in victims]
        wait_until_gone([*pids, status["driver"]])
        return struck_at_s if any(arrived) else None

    def _damage(self, config: FreshetConfig, fault: Fault) -> bool:
        """Damage a file of the newest checkpoint. It must be named and an older one used; False if there is none."""
        store = _store(config)
        newest, names = store.newest(), store.names()
        if newest is None or len(names) < 2 or newest.name != names[-1]:
            return False
        rng = np.random.default_rng(fault.seed)
        victims = sorted(path for path in newest.path.iterdir() if path.stat().st_size)
        victim = victims[int(rng.integers(len(victims)))]
        content = bytearray(victim.read_bytes())
        if fault.target == "truncate":
            content = content[: int(rng.integers(len(content)))]
        else:
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        victim.write_bytes(bytes(content))
        said = _Listener()
        logging.getLogger("cluster.checkpoints.checkpoint").addHandler(said)
        fallen_back_to = _store(config).newest()
        logging.getLogger("cluster.checkpoints.checkpoint").removeHandler(said)
        assert fallen_back_to is not None
        assert fallen_back_to.name != newest.name, f"damage to {victim} was not noticed"
        assert newest.name in " ".join(said.messages), f"{newest.name} is not named: {said.messages}"
        assert victim.name in " ".join(said.messages), f"{victim.name} is not named: {said.messages}"
        return True

    def _is_as_expected(self, config: FreshetConfig, parts: tuple[str, ...]) -> bool:
        """Whether these parts of the state equal the undisturbed run's; also counts lost events."""
        self.report.runs += 1
        found = digests(read_state(_store(config).newest()))
        names = sorted(name for name in {**found, **self._expected} if name.startswith(parts))
        other = [name for name in names if found.get(name) != self._expected.get(name)]
        self.report.differences.append(other)
        accounting = verify_exactly_once(config)
        self.report.events_lost += accounting.events_lost
        self.report.events_doubled += accounting.events_doubled
        assert accounting.exactly_once or accounting.events_lost or accounting.events_doubled, accounting
        return not other


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def fill_topics(stream: StreamConfig, seed: int) -> None:
    """Events of all kinds: likes, skips, looks, repeated event ids, garbage; and catalogues of items and users."""
    rng = np.random.default_rng(seed)
    at_N = np.arange(EVENTS)
    at_N[500::97] -= 50  # the same event ids again
    with EventProducer(stream) as producer:
        for start in range(0, EVENTS, 100):
            some = at_N[start : start + 100]
            chosen = np.random.default_rng([seed, start])
            columns = {
                "user_id": 1 + (some * 7919) % USERS,
                "item_id": 1 + (some * some * 31 + some) % ITEMS,
                "timestamp_ms": 1_700_000_000_000 + some * 1000,
                "action": chosen.choice(["like", "like", "like", "skip", "look"], len(some)).tolist(),
                "event_id": [f"e{n}" for n in some],
            }
            producer.send(pa.RecordBatch.from_pydict(columns))
            producer.flush()
    with KafkaProducer(bootstrap_servers=stream.bootstrap_servers) as plain:
        for partition in (0, 1):
            plain.send(stream.interactions_topic, key=b"1", value=b"nonsense", partition=partition)
        for item in range(1, ITEMS):
            record = {"item_id": item, "categories": rng.choice(["a", "b", "c"], 2).tolist()}
            plain.send(stream.items_topic, key=str(item).encode(), value=orjson.dumps(record))
        for user in range(1, USERS):
            record = {"user_id": user, "attributes": {"gender": "MF"[user % 2]}}
            plain.send(stream.users_topic, key=str(user).encode(), value=orjson.dumps(record))
        plain.flush(timeout=20)


def _kill(pid: int) -> bool:
    """Whether it still existed when it was killed; the driver ends the others when it has lost one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _later(fault: Fault) -> Fault:
    """The same damage after more steps, because there was no second checkpoint to fall back to yet."""
    return replace(fault, occurrence=2 * fault.occurrence)


def _limits_effect(state: State, folder: Path) -> dict[str, int]:
    removed: Counter[str] = Counter()
    for told in folder.glob("limits-*.json"):
        removed.update(json.loads(told.read_text()))
    waiting = sum(table.num_rows for name, table in state.tables.items() if name.startswith(WAITING))
    rows = int(np.isin(state.rows["table"].to_numpy(), (ITEM, USER, SOURCE)).sum())
    return {**removed, "waiting": waiting, "rows": rows}


def _said(folder: Path, attempt: int) -> str:
    """What rank 0 logged in an attempt."""
    log = folder / "rank-0.log"
    return log.read_text().rpartition(f"--- attempt {attempt},")[2] if log.exists() else ""


def _store(config: FreshetConfig) -> CheckpointStore:
    return CheckpointStore(config.checkpoint_location)


def progress(report: Report, kills: int, changes: int) -> str:
    """A line after each run."""
    return (
        f"{report.seconds:7.0f} s  kills {report.kills} of {kills}, rank changes {report.rank_changes} of {changes}, "
        f"runs {report.runs}, lost {report.events_lost}, doubled {report.events_doubled}, "
        f"{'as undisturbed' if report.as_undisturbed() else 'OTHER THAN UNDISTURBED'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument(
        "--rank-changes", type=int, help="faults after which the number of ranks changes (a tenth of --kills)"
    )
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--world", type=int, default=2)
    arguments = parser.parse_args(argv)
    changes = arguments.kills // 10 if arguments.rank_changes is None else arguments.rank_changes
    logging.getLogger("kafka").setLevel(logging.ERROR)

    def after_run(report: Report) -> None:
        replace_durably(arguments.report, f"{report.text()}\n".encode())
        print(progress(report, arguments.kills, changes), file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="freshet-chaos-"))
    try:
        with LocalBroker(folder / "kafka") as broker:
            campaign = Campaign(broker, folder, arguments.seed, arguments.world)
            report = campaign.run(arguments.kills, changes, after_run)
    except BaseException:
        print(f"ended early; {folder} is kept", file=sys.stderr)
        raise
    print(report.text())
    if not report.passed():
        print(f"failed; {folder} is kept", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
