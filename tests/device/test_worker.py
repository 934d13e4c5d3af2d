"""The whole loop of one worker on the device, from a folder of files: nothing of it needs a broker."""

from dataclasses import replace

from cluster.audit.exactly_once import verify_exactly_once
from cluster.collectives import Collectives
from cluster.serving.recommender import Recommender
from cluster.training.intake.taking import BatchTaker
from cluster.training.stepping import Stepping
from cluster.training.steps.train_step import TrainStep
from cluster.training.worker import Worker
from tests.support.device_runs import data_set_of, differing, state_of
from tests.support.worker_runs import config_of


def test_a_worker_trains_checkpoints_publishes_and_resumes(gpu, tmp_path):
    stream = data_set_of(tmp_path / "data", 300)
    whole = config_of(stream, tmp_path / "run")
    whole = replace(whole, progressive=replace(whole.progressive, sample_fraction=0.3, served_cpu_share=0.0))
    part = replace(whole, train=replace(whole.train, stop_after_rows=120))
    first = Worker(part, Collectives(), gpu.device).train()
    assert 120 <= first["rows_read"] < 300
    last = Worker(whole, Collectives(), gpu.device).train()
    assert last["events_trained"] == 300
    assert verify_exactly_once(whole).exactly_once
    recommender = Recommender(whole)
    assert [r.title for r in recommender.recommend(history=[1, 2, 3], k=2)] != ["", ""]


class _Killed(Exception):
    """The process was killed."""


def _final(config, device, monkeypatch, *, ahead, kill_at=()):
    """A run's last state, what it says of itself, and how many batches it took ahead; killed before these steps."""
    taken, kills = [], list(kill_at)
    take_ahead, train = BatchTaker.take_ahead, TrainStep.train

    def counted(self, step):
        taken.append(1)
        take_ahead(self, step)

    def killed(self, prepared, step, **rest):
        if kills and step == kills[0]:
            kills.pop(0)
            raise _Killed
        return train(self, prepared, step, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(BatchTaker, "take_ahead", counted)
        patched.setattr(TrainStep, "train", killed)
        if not ahead:
            patched.setattr(Stepping, "_may_take_ahead", False)
        while True:
            worker = Worker(config, Collectives(), device)
            try:
                progress = worker.train()
            except _Killed:
                continue
            return state_of(worker.run), progress, len(taken)


def test_batches_are_taken_ahead_and_the_run_stays_the_same_over_checkpoints_and_kills(
    gpu, tmp_path, monkeypatch
):
    stream = data_set_of(tmp_path / "data", 400)
    train = {"batch_events": 32, "checkpoint_every_s": 1e-6}

    def config(name):
        return config_of(stream, tmp_path / name, **train)

    wanted, told, none = _final(config("plain"), gpu.device, monkeypatch, ahead=False)
    found, said, taken = _final(config("ahead"), gpu.device, monkeypatch, ahead=True)
    again, after, _ = _final(config("killed"), gpu.device, monkeypatch, ahead=True, kill_at=(3, 8))
    assert none == 0
    assert taken >= 5
    assert told["events_trained"] == said["events_trained"] == after["events_trained"] == 400
    assert differing(wanted, found) == []
    assert differing(wanted, again) == []
    assert all(verify_exactly_once(config(name)).exactly_once for name in ("plain", "ahead", "killed"))
