"""`freshet submit` and plain `ray job submit`, on a real local cluster of two nodes that `ray start` made."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pytest
from ray.job_submission import JobSubmissionClient

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.observability.progress_file import read_progress
from cluster.training.state.compatibility import flat
from deploy.command.children import Child
from retrieval.versions.store import VersionStore
from streaming.kafka.topics import create_topics
from streaming.producing.producer import EventProducer
from tests.support.checkpointing import save_checkpoint
from tests.support.local_ray import NO_SPARE_WORKERS, free_port, wait_until
from tests.support.unit_runs import open_run, small_config, train_steps

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
EVENTS = 1500
BIN = Path(sys.executable).parent
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module")
def cluster():
    """The job server's address of a Ray cluster of two nodes with two CPUs and one, ended with the module."""
    port, agent_port = free_port(), free_port()
    # Ray's sockets lie below its temporary folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        gcs_port = str(free_port())
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"),
            *("--port", gcs_port, "--dashboard-port", str(port), "--temp-dir", folder),
            *("--ray-client-server-port", str(free_port()), "--disable-usage-stats"),
            # The agent runs the jobs; on its usual port it would collide with another Ray on this machine.
            *("--dashboard-agent-listen-port", str(agent_port)),
        ]
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **NO_SPARE_WORKERS}
        with Child("ray", command, Path(folder) / "head.log", environment) as head:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(f"{address}/api/version", head)
            wait_until_ready(f"http://127.0.0.1:{agent_port}/api/local_raylet_healthz", head)
            joining = [
                *(str(BIN / "ray"), "start", "--block", "--address", f"127.0.0.1:{gcs_port}", "--num-cpus=1"),
                *("--dashboard-agent-listen-port", str(free_port())),
            ]
            with Child("ray", joining, Path(folder) / "node.log", environment) as node:
                wait_until(lambda: "Ray runtime started." in node.log_path.read_text(), node, 180)
                yield address


def wait_until_ready(url: str, head: Child) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except HTTPError:
            return  # it answers, and requires a token
        except OSError:
            assert head.exit_status() is None, head.log_path.read_text()
            assert time.monotonic() < deadline, head.log_path.read_text()
            time.sleep(1)


@pytest.fixture
def stream(kafka_broker, tmp_path):
    """Settings of a stream of 1,500 events, as `key=value`."""
    from streaming.config import StreamConfig

    suffix = tmp_path.name
    config = replace(
        StreamConfig(bootstrap_servers=kafka_broker.bootstrap_servers),
        interactions_topic=f"interactions-{suffix}",
        items_topic=f"items-{suffix}",
        users_topic=f"users-{suffix}",
    )
    create_topics(config, 2)
    numbers = range(EVENTS)
    columns = {
        "user_id": [n % 40 for n in numbers],
        "item_id": [1 + n * n % 97 for n in numbers],
        "timestamp_ms": [1_700_000_000_000 + 1000 * n for n in numbers],
    }
    with EventProducer(config) as producer:
        producer.send(pa.RecordBatch.from_pydict(columns))
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    return [f"stream.{name}={getattr(config, name)}" for name in names]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        check=False,
        env={**os.environ, "RAY_AUTH_TOKEN": TOKEN, **environment},
    )


BOUNDED = ["train.bounded=true", "train.workers=1", "train.batch_events=256", "device=cpu"]


def test_a_submitted_training_job_prints_its_logs_and_ends_with_its_status(cluster, stream, tmp_path):
    settings = [*stream, *BOUNDED, f"storage_path={tmp_path / 'run'}"]
    report = tmp_path / "job.json"
    submit = [sys.executable, "-m", "deploy", "submit", "train", "--address", cluster, "--json", str(report)]
    done = run([*submit, *settings])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(report.read_text())["status"] == "SUCCEEDED"
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert (progress["state"], progress["events_trained"]) == ("finished", EVENTS)
    assert "events_trained" in done.stdout


def test_a_job_that_fails_is_one_line_and_status_1(cluster, stream, tmp_path):
    settings = [*stream, "stream.interactions_topic=nobody-made-it", f"storage_path={tmp_path / 'run'}"]
    done = run([sys.executable, "-m", "deploy", "submit", "train", "--address", cluster, *settings])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("freshet: error: job raysubmit_")
    assert "nobody-made-it" in done.stdout


def test_plain_ray_job_submit_of_the_verb_works_too(cluster, stream, tmp_path):
    settings = [*stream, *BOUNDED, f"storage_path={tmp_path / 'run'}"]
    ray = [str(BIN / "ray"), "job", "submit", "--address", cluster, "--working-dir", "."]
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [*ray, "--runtime-env-json", json.dumps({"env_vars": path}), "--"]
    # Unlike `freshet submit`, Ray's own client uses no token unless this is set.
    done = run([*command, "python", "-m", "deploy", "train", *settings], RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["events_trained"] == EVENTS


def test_ray_job_stop_lets_a_live_run_commit_all_that_it_has_read(cluster, stream, tmp_path):
    report, storage = tmp_path / "job.json", tmp_path / "run"
    submit = ["submit", "train", "--no-wait", "--address", cluster, "--json", str(report)]
    live = [
        *stream,
        *BOUNDED,
        "train.bounded=false",
        "train.checkpoint_every_s=3600",
        f"storage_path={storage}",
    ]
    submitted = run([sys.executable, "-m", "deploy", *submit, *live])
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]

    # The token is given as a header: Ray reads RAY_AUTH_MODE once a process, and an earlier test may have imported Ray.
    jobs = JobSubmissionClient(cluster, headers={"Authorization": f"Bearer {TOKEN}"})
    job = json.loads(report.read_text())["job"]
    until(lambda: (read_progress(storage) or {}).get("rows_read") == EVENTS, jobs, job)
    [worker] = read_progress(storage)["pids"]
    jobs.stop_job(job)
    until(lambda: jobs.get_job_status(job).is_terminal(), jobs, job)

    assert jobs.get_job_status(job) == "STOPPED"
    assert read_progress(storage)["state"] == "stopped"
    assert CheckpointStore(str(storage / "checkpoints")).newest().manifest["rows_read"] == EVENTS
    assert "Traceback" not in (log := jobs.get_job_logs(job)), log[-4000:]
    until(lambda: not Path(f"/proc/{worker}").exists(), jobs, job)


ITEMS = 200_000


def test_a_submitted_refresh_runs_on_both_nodes_and_a_killed_worker_is_started_again(cluster, tmp_path):
    """Three workers of one CPU each need both nodes. The kill comes when all of them have begun."""
    config = replace(small_config(), storage_path=str(tmp_path / "run"))
    config.train = replace(config.train, workers=3)
    trained = open_run(config)
    trained.catalogue.add_items(np.arange(1000, 1000 + ITEMS))
    train_steps(trained, 3)
    save_checkpoint(trained, CheckpointStore(config.checkpoint_location), Collectives())
    attempts, log, report = tmp_path / "run" / ".publish", tmp_path / "submit.log", tmp_path / "job.json"
    submit = ["submit", "refresh", "--address", cluster, "--json", str(report), *changed(config)]
    store = VersionStore(config.index_location)
    with Child(
        "freshet submit", [sys.executable, "-m", "deploy", *submit], log, {"RAY_AUTH_TOKEN": TOKEN}
    ) as job:
        wait_until(lambda: len(owners_of(attempts)) == 3, job, 300)
        os.kill(owners_of(attempts)[0], signal.SIGKILL)
        assert store.names() == []
        wait_until(lambda: job.exit_status() is not None, job, 300)
        assert job.exit_status() == 0, log.read_text()[-4000:]
    assert json.loads(report.read_text())["status"] == "SUCCEEDED"
    version = store.verify("v00000001")
    assert (store.names(), store.live_name()) == (["v00000001"], "v00000001")
    assert version.manifest["items"] == trained.catalogue.item_count
    assert list(attempts.glob("attempt-*")) == []


def changed(config: FreshetConfig) -> list[str]:
    """What differs from the defaults, as `key=value`."""
    ours, usual = flat(asdict(config)), flat(asdict(FreshetConfig()))
    differing = [f"{name}={json.dumps(value)}" for name, value in ours.items() if value != usual[name]]
    return [*differing, "device=cpu", f"storage_path={config.storage_path}"]


def owners_of(attempts: Path) -> list[int]:
    """The processes that own the folder of an attempt together."""
    owners = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # processes end, and files are closed
            for descriptor in os.listdir(process / "fd"):
                with suppress(OSError):
                    opened = (process / "fd" / descriptor).readlink()
                    if opened.name == ".lock" and opened.parent.parent == attempts:
                        owners.add(int(process.name))
    return sorted(owners)


def until(holds, jobs, job, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, jobs.get_job_logs(job)[-4000:]
        time.sleep(0.2)
