"""The commands of README and docs/ at a tiny size: one broker, one trainer, and one data set for all of them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, suppress
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from deploy.cli import app
from deploy.command.children import Child
from deploy.command.config_loading import load_config
from streaming.config import StreamConfig
from streaming.local_broker.jars import cache_root
from tests.support.documents import ROOT, code_spans, commands, guides
from tests.support.local_ray import LocalRay, wait_until
from tests.support.worker_runs import send_raw

pytestmark = pytest.mark.timeout(300)

BIN = Path(sys.executable).parent
EVENTS, USERS, ITEMS = 400, 20, 60
COMMANDS = [command for page in guides() for command in commands(page)]
RUN = list(dict.fromkeys(command.text for command in COMMANDS if not command.reason))
FIRST = ("freshet broker", "freshet train storage_path=runs/movies", "freshet replay")
"""What the other commands need: started, or run, in this order."""
TINY = {
    "model": {"dim": 8, "members": 1, "layers": 1, "heads": 2, "augmented_dim": 4, "uniform_negatives": 10},
    "train": {"workers": 1, "checkpoint_every_s": 1.0, "publish_every_s": 1.0},
    "index": {"min_recall": 0.0, "recall_target": 0.5},
    "fit": {"passes": 1},
    "wals": {"factors": 4, "iterations": 2},
    "stream": {"user_attributes": []},
    "device": "cpu",
}
OWN_PROCESS = {"train", "refresh", "replay"}
SMALLER = {"replay": ["--seconds=0"], "evaluate": ["--seeds=1", "--workers=0"]}


def _data_set(folder):
    """What the cache has as ml-100k, so that nothing is downloaded."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    events = {
        "user_id": rng.integers(23, 23 + USERS, EVENTS),  # among them user 42
        "item_id": rng.choice([50, 181, 172, *range(1, ITEMS)], EVENTS),
        "timestamp": 883_000_000 + np.arange(EVENTS) * 86_400,
    }
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    items = sorted(set(events["item_id"].tolist()))
    pq.write_table(
        pa.table({"item_id": items, "title": [f"Movie {i}" for i in items]}), folder / "items.parquet"
    )
    (folder / "meta.json").write_text(json.dumps({"name": "ml-100k"}))


class Shell:
    """A working directory in which commands of the documents are run, with a tiny configuration."""

    def __init__(self, folder, ray):
        self.folder = folder
        self.environment = ray.environment | {
            "FRESHET_CACHE": str(folder / "cache"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.children = []
        self.done = set()
        _data_set(folder / "cache" / "datasets" / "ml-100k")
        for jars in cache_root().glob("kafka-*"):
            (folder / "cache" / jars.name).symlink_to(jars)

    def words(self, text):
        words = next(command for command in COMMANDS if command.text == text).words
        return [*words, *SMALLER.get(words[1], []), "--config", "tiny.yaml"]

    def start(self, text, *more):
        """Start a command that the documents put in the background."""
        self.done.add(text)
        child = Child(
            text, [*self.words(text), *more], self.folder / f"{len(self.children)}.log", self.environment
        )
        self.children.append(child)
        with chdir(self.folder):
            return child.start()

    def run(self, text):
        """Run one to its end; it must end with 0. What needs no process of its own runs here: imports cost seconds."""
        self.done.add(text)
        words = self.words(text)
        with chdir(self.folder), patch.dict(os.environ, self.environment):
            if words[1] in OWN_PROCESS:
                ended = subprocess.run(words, capture_output=True, text=True, check=False)
                assert ended.returncode == 0, ended.stdout + ended.stderr
                return ended.stdout
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{result.output}{result.exception!r}"
            return result.output

    def configure(self, **stream):
        settings = {**TINY, "stream": {**TINY["stream"], **stream}}
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A broker, a trainer that has trained what was replayed and published a version, and one dead letter."""
    broker, train, replay = (next(text for text in RUN if text.startswith(first)) for first in FIRST)
    with LocalRay(cpus=3) as ray:
        yield from _prepared(Shell(tmp_path_factory.mktemp("documents"), ray), broker, train, replay)


def _prepared(shell, broker, train, replay):
    try:
        shell.configure()
        ready = shell.folder / "broker.json"
        process = shell.start(broker, "--port=0", "--dir=broker", f"--json={ready}")
        wait_until(ready.exists, process, 120)
        servers = json.loads(ready.read_text())["bootstrap_servers"]
        shell.configure(bootstrap_servers=servers)
        trainer = shell.start(train)
        shell.run(replay)
        send_raw(StreamConfig(bootstrap_servers=servers), [{"value": {"user_id": 42}, "key": b"42"}])
        storage = shell.folder / "runs" / "movies"

        def trained():
            said = (
                json.loads((storage / "progress.json").read_text())
                if (storage / "progress.json").exists()
                else {}
            )
            saved = (said.get("checkpoint") or {}).get("step", -1) == said.get("step")
            return said.get("rows_read", 0) > EVENTS and saved and (storage / "index" / "CURRENT").exists()

        wait_until(trained, trainer, 180)
        yield shell
        trainer.stop()
        assert trainer.exit_status() == 0, trainer.log_path.read_text()
        broker_child = shell.children[0]
        broker_child.stop()
        assert broker_child.exit_status() == 0, broker_child.log_path.read_text()
    finally:
        for child in reversed(shell.children):
            child.stop()


def _corrected(shell):
    """What a person does between `dead-letters list --out` and `dead-letters replay --from`."""
    letters = shell.folder / "letters.jsonl"
    if not letters.exists():
        shell.run(next(text for text in RUN if "dead-letters list --out" in text))
    lines = [json.loads(line) for line in letters.read_text().splitlines()]
    assert lines
    for line in lines:
        line["value"] |= {"item_id": 50, "timestamp_ms": 883_000_000_000}
    letters.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize("text", RUN)
def test_a_command_of_the_documents_does_its_work(shell, text):
    if text in shell.done:
        return
    if "dead-letters replay --from" in text:
        _corrected(shell)
    assert shell.run(text)


def _parsed(words):
    """The command line as the command itself parses it: verbs, options, and settings must exist."""
    command, words = typer.main.get_command(app), words[1:]
    context = click.Context(command, info_name="freshet")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, parent=context, info_name=name)
    if words:
        with suppress(click.MissingParameter):  # in a sentence, what is required may be left out
            command.parse_args(context, list(words))
    load_config(None, [word for word in context.params.get("overrides") or [] if "=" in word])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.reason], ids=lambda c: f"{c.page}: {c.text}")
def test_a_command_that_is_not_run_says_why_and_can_be_parsed(command):
    assert len(command.reason.split()) > 1
    if command.words[0] == "freshet":
        _parsed(command.words)
    elif command.words[0] == "make":
        _require_make(command.words)


def _inline():
    for page in guides():
        for span in code_spans(page):
            if re.match(r"(freshet|make) [a-z]", span):
                yield pytest.param(span, id=f"{page.relative_to(ROOT)}: {span}")


@pytest.mark.parametrize("span", dict.fromkeys(_inline()))
def test_a_command_in_a_sentence_can_be_parsed(span):
    words = shlex.split(span)
    if words[0] == "make":
        _require_make(words)
    elif "FILE" not in span and "LOCATION" not in span:
        _parsed(words)


def _require_make(words):
    """The target exists, and `make` can say what it would do, down to a program that is there."""
    assert shutil.which("make")
    stamp = next((ROOT / ".venv").glob(".installed-*"), None)
    kept = ["-o", str(stamp.relative_to(ROOT))] if stamp else []
    said = subprocess.run(
        ["make", "-n", *kept, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    for program in re.findall(r"tests/benchmarks/\w+\.py", said.stdout):
        assert (ROOT / program).exists()
