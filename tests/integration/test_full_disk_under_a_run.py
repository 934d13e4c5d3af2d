"""A disk that is full, or read-only, for a while under a run that trains: it goes on, and says why meanwhile."""

import threading
import time
from contextlib import ExitStack

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.training.accounting import verify_exactly_once
from cluster.training.telemetry import read_progress
from cluster.training.worker import Worker
from retrieval.searcher import Searcher
from tests.full_disk import FULL, READ_ONLY, refusing
from tests.worker_runs import config_of, events, produce

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
