"""A disk that is full or read-only for a while during training: the run continues, and reports the reason."""

import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.observability.progress_file import read_progress
from cluster.training.worker import Worker
from retrieval.versions.searcher import Searcher
from tests.support.full_disk import FULL, READ_ONLY, refusing
from tests.support.worker_runs import config_of, events, produce

EVENTS = 900
_PATIENCE_S = 60.0


class _Disk(threading.Thread):
    """Fills the disk once the run has published, and makes room once the run says that it has noticed."""

    def __init__(self, config, storage, calls, code):
        super().__init__()
        self._config, self._storage, self._calls, self._code = config, storage, calls, code
        self.told, self.seen = "", {}

    def run(self):
        self._wait(lambda said: (said.get("index") or {}).get("version") and said.get("checkpoint"))
        with ExitStack() as disk:
            for call in self._calls:
                disk.enter_context(refusing(call, self._code, below=self._storage))
            produce(self._config.stream, events(300, first=300))
            self.seen = self._wait(
                lambda said: "index versions" in said["error"] and "checkpoint" in said["error"]
            )
        self.told = self.seen["error"]
        self._wait(lambda said: said["error"] == "")  # also if nothing is left to train on meanwhile
        produce(self._config.stream, events(300, first=600))

    def _wait(self, holds):
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            said = read_progress(self._storage) or {}
            if said.get("state") == "training" and holds(said):
                return said
            time.sleep(0.05)
        raise AssertionError(f"never: {said}")


@pytest.mark.parametrize(("calls", "code"), [(("mkdir",), FULL), (("mkdir", "rename"), READ_ONLY)])
def test_a_run_outlives_its_disk_and_what_came_meanwhile_is_kept_once(stream_config, tmp_path, calls, code):
    live = {"bounded": False, "stop_after_rows": EVENTS, "checkpoint_every_s": 0.2, "publish_every_s": 0.2}
    config = config_of(stream_config, tmp_path / "run", **live, linger_s=0.05)
    produce(config.stream, events(300))
    disk = _Disk(config, tmp_path / "run", calls, code)
    disk.start()
    try:
        progress = Worker(config, Collectives(), torch.device("cpu")).train()
    finally:
        disk.join()
    assert f"[Errno {code}]" in disk.told
    assert (progress["events_trained"], progress["error"]) == (EVENTS, "")
    assert verify_exactly_once(config).exactly_once
    assert CheckpointStore(config.checkpoint_location).newest().manifest["events_trained"] == EVENTS
    assert Searcher(tmp_path / "run" / "index").version.manifest["events_trained"] == EVENTS


class _FullUntil:
    """No new folder below the checkpoints until a checkpoint has been tried so often; forever with 0."""

    def __init__(self, config, tries):
        self._left = tries
        self._disk = ExitStack()
        self._disk.enter_context(refusing("mkdir", FULL, below=config.checkpoint_location))

    def __call__(self, step):
        if step == "begin":
            self._left -= 1
            if self._left == 0:
                self.close()

    def close(self):
        self._disk.close()


class _AskedAfter:
    """Somebody asks for a stop once the run has read so much."""

    def __init__(self, storage, rows):
        self._storage, self._rows = storage, rows

    @property
    def asked(self):
        return (read_progress(self._storage) or {}).get("rows_read", 0) >= self._rows

    def close(self):
        pass


def _on_a_full_disk(config, tries=0, stop=None):
    disk = _FullUntil(config, tries)
    try:
        return Worker(config, Collectives(), torch.device("cpu"), stop=stop, at=disk).train()
    finally:
        disk.close()


def _progress_of_first_run(config):
    produce(config.stream, events(300))
    Worker(config, Collectives(), torch.device("cpu")).train()
    produce(config.stream, events(300, first=300))


def test_the_last_checkpoint_waits_for_room_and_the_run_ends_as_any_other(stream_config, tmp_path, caplog):
    config = config_of(stream_config, tmp_path / "run")
    _progress_of_first_run(config)
    progress = _on_a_full_disk(config, tries=3)
    assert (progress["state"], progress["events_trained"], progress["error"]) == ("finished", 600, "")
    assert CheckpointStore(config.checkpoint_location).newest().manifest["events_trained"] == 600
    assert caplog.text.count("waiting up to 60 s (train.storage_patience_s)") == 1


def test_without_room_the_run_ends_with_one_line_and_the_next_one_trains_all_of_it_once(
    stream_config, tmp_path
):
    config = config_of(stream_config, tmp_path / "run", storage_patience_s=0)
    _progress_of_first_run(config)
    with pytest.raises(CheckpointError) as ended:
        _on_a_full_disk(config)
    said = str(ended.value)
    assert "\n" not in said
    for part in (
        "last checkpoint",
        "[Errno 28]",
        config.checkpoint_location,
        "no data is lost",
        "storage_path",
    ):
        assert part in said
    assert Worker(config, Collectives(), torch.device("cpu")).train()["events_trained"] == 600
    assert verify_exactly_once(config).exactly_once


def test_a_stop_on_a_full_disk_says_that_the_next_run_goes_on_from_the_checkpoint_before(
    stream_config, tmp_path
):
    config = config_of(stream_config, tmp_path / "run", bounded=False, stop_within_s=1.5)
    _progress_of_first_run(replace(config, train=replace(config.train, bounded=True)))
    progress = _on_a_full_disk(config, stop=_AskedAfter(tmp_path / "run", 600))
    assert progress["state"] == "stopped"
    assert "[Errno 28]" in progress["stop_error"]
    assert "the next run resumes from the one before" in progress["stop_error"]
    again = Worker(
        replace(config, train=replace(config.train, bounded=True)), Collectives(), torch.device("cpu")
    )
    assert again.train()["events_trained"] == 600
    assert verify_exactly_once(config).exactly_once
