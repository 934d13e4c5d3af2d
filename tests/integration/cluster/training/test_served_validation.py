"""Served validation with its process: beside two ranks, without a trace in checkpoints, and ended with its trainer."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.audit.state import read_state
from cluster.collectives import Collectives
from cluster.queries.version_store import version_store
from cluster.training.served.answering_process import AnsweringProcess
from cluster.training.served.answers import LiveAnswers
from cluster.training.served.recent_models import RecentModels
from cluster.training.worker import Worker
from tests.support.index_versions import publish_version
from tests.support.ranks import run_on_ranks
from tests.support.state_digests import digests
from tests.support.training_batches import Run, to_batch
from tests.support.unit_runs import small_run
from tests.support.worker_runs import config_of, events, newest, produce, train

_DIES = """
import os, signal, sys
from cluster.training.served.answering_process import AnsweringProcess
from tests.integration.cluster.training.test_served_validation import question, settings_of
answering = AnsweringProcess(settings_of(sys.argv[1]))
answering.ask(question(), 5)
print(answering._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def settings_of(storage):
    config = small_run().config
    return replace(config, storage_path=str(storage))


def question():
    rng = np.random.default_rng(0)
    rows = [Run(user, [1, 2], rng.integers(1, 51, 3).tolist(), attributes=(1,)) for user in range(30)]
    return to_batch(rows)


def test_the_process_answers_as_the_live_version_does_follows_the_next_one_and_ends_with_its_trainer(
    tmp_path,
):
    run = small_run()
    config = publish_version(run, tmp_path)
    models = RecentModels(version_store(config), config.stream)
    answering, here = AnsweringProcess(config), LiveAnswers(models, config.progressive.top_k)
    for step, version in ((0, "v00000001"), (1, "v00000002")):
        answer = answering.ask(question(), step)
        assert replace(answer, cpu_s=0.0) == here.answer(question(), step)
        assert (answer.version, answer.sample) == (version, 83)
        assert 0 < answer.hits < answer.sample
        publish_version(run, tmp_path)
    assert answer.cpu_s > 0
    failed = []

    def ask_on():
        try:
            while True:
                answering.ask(question(), 2)
        except OSError as error:
            failed.append(error)

    asking = threading.Thread(target=ask_on)
    asking.start()
    answering.close()
    asking.join(30)
    assert len(failed) == 1

    trainer = subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert trainer.returncode == -9
    pid, until = int(trainer.stdout), time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def _runs(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except FileNotFoundError:
        return False


class _UntilAnswered:
    """Asks a run to stop once it has read so many rows and has answers in the bins of the events from 400 on."""

    def __init__(self, rows):
        self.rows, self.worker = rows, None

    @property
    def asked(self):
        said = self.worker.progress.last if self.worker else {}
        return said.get("rows_read") == self.rows and sum(said["served"]["sample"][4:]) > 0

    def close(self):
        pass


def _train_until_answered(rank, config, rows):
    notice = _UntilAnswered(rows)
    notice.worker = Worker(config, Collectives(), torch.device("cpu"), stop=notice)
    return notice.worker.train()


@pytest.fixture
def configs(stream_config, tmp_path):
    """Settings of a run that answers without a limit, and of one that does not."""

    def make(share):
        config = config_of(stream_config, tmp_path / str(share), batch_events=16)
        config.progressive = replace(
            config.progressive, sample_fraction=0.5, served_cpu_share=share, bin_events=100, baselines=False
        )
        return config

    return make(1.0), make(0.0)


def test_two_ranks_answer_from_the_version_before_and_checkpoints_are_those_of_a_run_that_does_not(
    stream_config, configs
):
    produce(stream_config, events(400))
    served, without = [], []
    for config, said in zip(configs, (served, without), strict=True):
        half = replace(config, train=replace(config.train, stop_after_rows=200))
        said += run_on_ranks(train, 2, half, config)[0]
    on, off = (digests(read_state(newest(config))) for config in configs)
    assert on == off
    assert without[1]["served"]["dropped"] == 0
    before = served[1]["served"]  # its process was still starting for some of the events, or for all
    assert before["dropped"] > 0

    produce(stream_config, events(300, first=400))
    config = configs[0]
    live = replace(config, train=replace(config.train, bounded=False, linger_s=0.05))
    progress, other = run_on_ranks(_train_until_answered, 2, live, 700)
    assert progress["served"]["version"] == "v00000002"
    earlier, later = progress["served"]["sample"][:4], progress["served"]["sample"][4:]
    assert earlier == (before["sample"] + 4 * [0])[:4]
    assert 0 < sum(later) <= 300  # in the bins of the events from 400 on
    assert progress["served"]["dropped"] >= before["dropped"]
    assert other == {}
