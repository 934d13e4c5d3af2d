"""The verb `submit`: runs another verb as a Ray job on a running cluster, and returns its logs and exit status."""

from __future__ import annotations

import asyncio
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from deploy.command.errors import CommandError, UsageError
from deploy.command.options import (
    AddressOption,
    CheckpointOption,
    ConfigOption,
    JsonOption,
    Overrides,
    TakeOverOption,
)
from deploy.command.output import write_json
from deploy.command.terminal import say, say_lines

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
NO_AGENT = "No available agent"
AGENT_TIMEOUT_S = 30.0
STOP_MARGIN_S = 5.0
# Files that the workers do not need, besides those in .gitignore, which Ray reads.
EXCLUDED = [".git", ".venv", "runs", "build", "dist", "docs", "tests/benchmarks"]

app = typer.Typer(help="Run a verb as a Ray job on a running cluster.", no_args_is_help=True)


class ClusterUnreachable(CommandError):
    """No Ray cluster answers at `--address`."""


class JobFailed(CommandError):
    """The job failed."""


WorkingDirOption = Annotated[
    Path, typer.Option("--working-dir", help="Folder that the job runs in; it is uploaded.")
]
PythonOption = Annotated[
    str, typer.Option("--python", help="The cluster's Python; default: python, or here this one.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow its logs and its exit status.")]


@app.command(
    "train",
    epilog="**Example:** `freshet submit train --address http://head:8265 storage_path=/shared/movies`",
)
def submit_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    address: AddressOption = "http://127.0.0.1:8265",
    working_dir: WorkingDirOption = Path("."),
    python: PythonOption = "",
    wait: WaitOption = True,
    take_over: TakeOverOption = False,
) -> None:
    """Train as a Ray job on a running cluster and follow its logs; the exit status is the job's.

    The settings are checked here first. `storage_path` must be a folder that all nodes share. By hand:

    `ray job submit --working-dir . -- python -m deploy train storage_path=/shared/movies`
    """
    options = ["--take-over"] if take_over else []
    submit_verb(
        "train", config, overrides or [], address, working_dir, python, options, wait=wait, json_path=json
    )


@app.command(
    "refresh",
    epilog="**Example:** `freshet submit refresh --address http://head:8265 storage_path=/shared/movies`",
)
def submit_refresh(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    address: AddressOption = "http://127.0.0.1:8265",
    working_dir: WorkingDirOption = Path("."),
    python: PythonOption = "",
    wait: WaitOption = True,
    checkpoint: CheckpointOption = "",
) -> None:
    """Refresh the index as a Ray job on a running cluster and follow its logs; the exit status is the job's.

    Workers on any number of nodes each embed and index their own share of the items. If a worker is lost, all start
    again (train.max_restarts times). The settings are checked here first. `storage_path` must be a folder that all
    nodes share.
    """
    options = ["--checkpoint", checkpoint] if checkpoint else []
    submit_verb(
        "refresh", config, overrides or [], address, working_dir, python, options, wait=wait, json_path=json
    )


def interpreter_for(address: str, chosen: str = "") -> str:
    """The Python that runs the job: `chosen`, else this one on a local cluster, else the cluster's `python`.

    A local `ray start` may not have this virtual environment on its PATH.
    """
    if chosen:
        return chosen
    return sys.executable if urlsplit(address).hostname in LOOPBACK else "python"


def entrypoint(python: str, verb: str, config_file: Path | None, arguments: Sequence[str]) -> str:
    """The shell line of the job, as for `ray job submit … -- python -m deploy …`."""
    command = [python, "-m", "deploy", verb]
    if config_file is not None:
        command += ["--config", str(config_file)]
    return shlex.join([*command, *arguments])


def config_inside(config_file: Path | None, working_dir: Path) -> Path | None:
    """The config file's path as the job sees it, relative to the uploaded folder.

    Raises:
        UsageError: the file is outside the folder, so the job would not have it.
    """
    if config_file is None:
        return None
    try:
        return config_file.resolve().relative_to(working_dir.resolve())
    except ValueError as error:
        raise UsageError(
            f"--config {config_file} is outside of --working-dir {working_dir}, which is all that the job receives; "
            "put it there, or give its settings as key=value"
        ) from error


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Raises:
        ClusterUnreachable: no cluster answers there, or it refuses this client.
    """
    use_local_token(address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterUnreachable(
            f"the Ray cluster at {address} requires a token: set RAY_AUTH_MODE=token, and the token in "
            "RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names (default ~/.ray/auth_token)"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ClusterUnreachable(
            f"no Ray cluster answers at {address} (setting: --address; `ray start --head` starts one here)"
        ) from error


def use_local_token(address: str) -> None:
    """Use this machine's Ray token with a cluster on this machine; never send it elsewhere unasked.

    `ray start` enables token authentication if a token exists, and any earlier `ray.init` has created one, but Ray's
    job client does not look for it. Must run before Ray is imported.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    local = urlsplit(address).hostname in LOOPBACK
    if local and "RAY_AUTH_MODE" not in os.environ and ("RAY_AUTH_TOKEN" in os.environ or token.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def submit(
    client: JobSubmissionClient, command: str, working_dir: Path, environment: dict[str, str] | None = None
) -> str:
    """Upload the folder and start the job; returns its submission id.

    Raises:
        JobFailed: the cluster would not take it.
    """
    runtime_env: dict[str, Any] = {"working_dir": str(working_dir), "excludes": EXCLUDED}
    if environment:
        runtime_env["env_vars"] = environment
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env=runtime_env))
        except RuntimeError as error:
            # A cluster answers a few seconds earlier than the agent that runs its jobs.
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise JobFailed(
                    f"the cluster refused the job: {' '.join(str(error).split())[:400]}"
                ) from error
            time.sleep(1)


def follow(client: JobSubmissionClient, job_id: str) -> str:
    """Print the job's logs until it ends; returns its final status.

    Raises:
        JobFailed: it did not succeed; names the command that shows its log again.
    """
    asyncio.run(_print_logs(client, job_id))
    details = client.get_job_info(job_id)
    status = str(getattr(details.status, "value", details.status))
    if status != "SUCCEEDED":
        reason = " ".join(str(details.message or "").split()) or "no message"
        raise JobFailed(f"job {job_id} {status.lower()}: {reason[:400]} (its log: ray job logs {job_id})")
    return status


async def _print_logs(client: JobSubmissionClient, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        say_lines(lines)


def job_storage(storage_path: str, address: str) -> str:
    """The override that makes `storage_path` mean the same folder in the job as here.

    Raises:
        UsageError: a relative path on a cluster elsewhere, where it would be in the job's scratch folder.
    """
    if "://" in storage_path:
        return f"storage_path={storage_path}"
    path = Path(storage_path).expanduser()
    if not path.is_absolute() and urlsplit(address).hostname not in LOOPBACK:
        raise UsageError(
            f"storage_path={storage_path} is relative, and the cluster at {address} is not this machine: "
            "set storage_path to a folder that all its nodes share"
        )
    return f"storage_path={path.absolute()}"


def submit_verb(
    verb: str,
    config_file: Path | None,
    overrides: Sequence[str],
    address: str,
    working_dir: Path,
    python: str,
    options: Sequence[str] = (),
    *,
    wait: bool,
    json_path: Path | None,
) -> None:
    """Check the settings, submit the verb as a job, and follow it unless told otherwise.

    Raises:
        ConfigError, UsageError: before anything is sent.
        ClusterUnreachable, JobFailed: the cluster does not answer, or the job failed.
    """
    from deploy.command.config_loading import load_config

    config = load_config(config_file, list(overrides))
    if not working_dir.is_dir():
        raise UsageError(f"{working_dir} is not a folder (option --working-dir)")
    arguments = [*options, *overrides, job_storage(config.storage_path, address)]
    inside = config_inside(config_file, working_dir)
    command = entrypoint(interpreter_for(address, python), verb, inside, arguments)
    client = connect(address)
    # Ray kills a job 3 s after asking it to stop, unless the job's environment sets another time.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(config.train.stop_within_s + STOP_MARGIN_S))}
    job_id = submit(client, command, working_dir, patience)
    say(f"submitted {job_id}: {command}")
    status = "SUBMITTED"
    try:
        if wait:
            status = follow(client, job_id)
    except JobFailed:
        status = "FAILED"
        raise
    finally:
        write_json(json_path, {"job": job_id, "status": status, "entrypoint": command, "address": address})
