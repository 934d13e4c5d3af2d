import asyncio
import json
import os
import shlex
import sys
from types import SimpleNamespace

import pytest

from deploy.command.errors import UsageError
from deploy.verbs import submit

REMOTE = "http://head.example:8265"
LOCAL = "http://127.0.0.1:8265"


class FakeClient:
    def __init__(self, status: str = "SUCCEEDED", message: str = "") -> None:
        self.status, self.message = status, message
        self.submitted: dict[str, object] = {}

    def submit_job(self, **request: object) -> str:
        self.submitted = request
        return "raysubmit_1"

    async def tail_job_logs(self, job_id: str):
        for text in ("step 1\n", "step 2\n"):
            await asyncio.sleep(0)
            yield text

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(status=SimpleNamespace(value=self.status), message=self.message)


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(submit, "connect", lambda address: fake)
    config = SimpleNamespace(storage_path="/shared/movies", train=SimpleNamespace(stop_within_s=10.0))
    monkeypatch.setattr("deploy.command.config_loading.load_config", lambda file, overrides: config)
    return fake


def test_the_entrypoint_is_the_verb_as_anybody_would_type_it(tmp_path):
    command = submit.entrypoint("python", "train", tmp_path / "a b.yaml", ["stream.items_topic=x y"])
    assert shlex.split(command) == [
        *("python", "-m", "deploy", "train", "--config", str(tmp_path / "a b.yaml")),
        "stream.items_topic=x y",
    ]


def test_a_local_cluster_runs_this_python_and_another_its_own():
    assert submit.interpreter_for(LOCAL) == sys.executable
    assert submit.interpreter_for("http://localhost:8265") == sys.executable
    assert submit.interpreter_for(REMOTE) == "python"
    assert submit.interpreter_for(LOCAL, "python3.12") == "python3.12"


def test_a_config_file_travels_by_its_path_inside_the_working_dir(tmp_path):
    inside = tmp_path / "configs" / "a.yaml"
    assert submit.config_inside(inside, tmp_path).as_posix() == "configs/a.yaml"
    assert submit.config_inside(None, tmp_path) is None
    with pytest.raises(UsageError, match="outside of --working-dir"):
        submit.config_inside(tmp_path / "a.yaml", tmp_path / "project")


def test_a_relative_storage_path_becomes_absolute_here_and_is_refused_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert submit.job_storage("runs/a", LOCAL) == f"storage_path={tmp_path}/runs/a"
    assert submit.job_storage("/shared/a", REMOTE) == "storage_path=/shared/a"
    with pytest.raises(UsageError, match="storage_path=runs/a is relative"):
        submit.job_storage("runs/a", REMOTE)


def test_the_job_is_followed_and_its_logs_are_printed(client, tmp_path, capsys):
    submit.submit_verb(
        "train", None, ["seed=7"], REMOTE, tmp_path, "", wait=True, json_path=tmp_path / "job.json"
    )
    assert client.submitted["entrypoint"] == "python -m deploy train seed=7 storage_path=/shared/movies"
    environment = client.submitted["runtime_env"]
    assert environment["working_dir"] == str(tmp_path)
    assert ".venv" in environment["excludes"]
    assert environment["env_vars"] == {
        "RAY_JOB_STOP_WAIT_TIME_S": "15"
    }  # Ray would kill it 3 s after the signal
    assert "step 1\nstep 2\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "job.json").read_text())["status"] == "SUCCEEDED"


def test_a_failed_job_is_an_error_that_names_its_log(client, tmp_path):
    client.status, client.message = "FAILED", "Job entrypoint command failed\nwith exit code 1"
    with pytest.raises(
        submit.JobFailed, match=r"raysubmit_1 failed: .*exit code 1 .*ray job logs raysubmit_1"
    ):
        submit.submit_verb("train", None, [], REMOTE, tmp_path, "", wait=True, json_path=tmp_path / "j.json")
    assert json.loads((tmp_path / "j.json").read_text())["status"] == "FAILED"


def test_without_waiting_the_job_is_only_submitted(client, tmp_path, capsys):
    submit.submit_verb("train", None, [], REMOTE, tmp_path, "", wait=False, json_path=tmp_path / "j.json")
    assert "step 1" not in capsys.readouterr().out
    assert json.loads((tmp_path / "j.json").read_text())["status"] == "SUBMITTED"


def test_this_machines_token_is_used_here_and_never_sent_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    submit.use_local_token(LOCAL)
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / "token").write_text("secret")
    submit.use_local_token(REMOTE)
    assert "RAY_AUTH_MODE" not in os.environ
    submit.use_local_token(LOCAL)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_what_the_user_says_about_tokens_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    submit.use_local_token(LOCAL)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_cluster_that_does_not_answer_is_one_line_with_the_setting(monkeypatch):
    monkeypatch.setattr(submit, "use_local_token", lambda address: None)
    with pytest.raises(submit.ClusterUnreachable, match=r"no Ray cluster answers at .*:9 .*--address"):
        submit.connect("http://127.0.0.1:9")
