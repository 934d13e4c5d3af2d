import re
import shlex
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from deploy.cli import app, main
from deploy.demo.demo import trainer_child

VERBS = [
    ["demo"],
    ["broker"],
    ["check"],
    ["train"],
    ["replay"],
    ["refresh"],
    ["recommend"],
    ["status"],
    ["evaluate"],
    ["settings"],
    ["dead-letters", "list"],
    ["dead-letters", "replay"],
    ["data", "check"],
    ["data", "fetch"],
    ["submit", "refresh"],
    ["submit", "train"],
    ["checkpoint", "list"],
    ["checkpoint", "verify"],
    ["checkpoint", "diff"],
    ["checkpoint", "audit"],
    ["index", "list"],
    ["index", "verify"],
    ["index", "promote"],
    ["index", "rollback"],
]


def test_the_verbs_are_those_listed_here():
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found += (
            [[name, of_group] for of_group in command.commands] if hasattr(command, "commands") else [[name]]
        )
    assert sorted(found) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verbs_help_teaches_with_an_example_and_the_common_options(verb):
    result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))
    assert f"Example: freshet {' '.join(verb)}" in text
    for option in ("--config", "--json", "[KEY=VALUE]..."):
        assert option in text


def test_the_help_of_every_verb_answers_without_loading_what_is_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from deploy.cli import app; "
        f"verbs = [[], *{VERBS}]; "
        "assert all(CliRunner().invoke(app, [*verb, '--help']).exit_code == 0 for verb in verbs); "
        "heavy = {'torch', 'ray', 'faiss', 'pyarrow', 'numpy', 'numba', 'kafka', 'omegaconf', 'yaml', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "train.chekpoint_every_s=30"], 2, "train.checkpoint_every_s"),
        (["train", "train.workers=0"], 2, "train.workers must be at least 1, got 0"),
        (["status", "--config", "/nowhere/x.yaml"], 2, "/nowhere/x.yaml"),
        (["recommend", "storage_path=/tmp"], 2, "--user"),
        (["status", "storage_path=/nowhere/at/all"], 1, "storage_path"),
        (["refresh", "--checkpoint", "/nowhere"], 1, "/nowhere is not a checkpoint"),
        (
            [
                "train",
                "stream.bootstrap_servers=127.0.0.1:9",
                "stream.connect_timeout_s=1",
                "stream.broker_patience_s=0",
            ],
            1,
            "stream.bootstrap_servers",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_on_stderr_and_a_status(arguments, status, message, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["freshet", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == status, said
    lines = [line for line in said.splitlines() if line.startswith("freshet: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in said


def test_an_unknown_option_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "train", "--nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_init_from_is_a_setting_by_another_name_and_wins_over_it(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "deploy.verbs.train.run_train", lambda config, **options: seen.append(config.train.init_from) or {}
    )
    for arguments in (["--init-from", "runs/a"], ["train.init_from=runs/b", "--init-from", "runs/a"], []):
        assert CliRunner().invoke(app, ["train", *arguments]).exit_code == 0
    assert seen == ["runs/a", "runs/a", ""]


def test_locations_may_be_uris_and_reach_their_readers_as_they_are(monkeypatch):
    seen = []
    monkeypatch.setattr("deploy.verbs.train.run_train", lambda config, **_: seen.append(config) or {})
    monkeypatch.setattr(
        "deploy.verbs.refresh.run_refresh", lambda config, checkpoint: seen.append(checkpoint) or {}
    )
    uri = "s3://bucket/a//b?region=x"
    settings = [f"train.checkpoint_path={uri}", f"train.index_path={uri}"]
    options = ["--init-from", uri, "--parquet", uri]
    assert CliRunner().invoke(app, ["train", *options, *settings]).exit_code == 0
    assert CliRunner().invoke(app, ["refresh", "--checkpoint", uri]).exit_code == 0
    config, checkpoint = seen
    train = config.train
    places = [train.init_from, train.checkpoint_path, train.index_path, config.stream.parquet, checkpoint]
    assert places == [uri] * 5
    assert (config.checkpoint_location, config.index_location) == (uri, uri)


def test_who_is_alive_is_evicted_only_when_that_is_asked_for(monkeypatch):
    evicts = []
    monkeypatch.setattr(
        "deploy.verbs.train.run_train", lambda config, *, take_over: evicts.append(take_over) or {}
    )
    for arguments in ([], ["--take-over"]):
        assert CliRunner().invoke(app, ["train", *arguments]).exit_code == 0
    assert evicts == [False, True]


def test_a_submitted_job_and_the_demos_trainer_evict_too(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr("deploy.verbs.submit.connect", lambda address: None)
    monkeypatch.setattr(
        "deploy.verbs.submit.submit", lambda client, command, *_: said.append(command) or "job"
    )
    monkeypatch.setattr("deploy.demo.demo.run_demo", lambda options: said.append(options.take_over) or 0)
    for arguments in ([], ["--take-over"]):
        assert CliRunner().invoke(app, ["submit", "train", "--no-wait", *arguments]).exit_code == 0
        assert CliRunner().invoke(app, ["demo", *arguments]).exit_code == 0
    assert ["--take-over" in shlex.split(command) for command in said[::2]] == [False, True]
    assert said[1::2] == [False, True]
    commands = [trainer_child(tmp_path, take_over=evicts).command for evicts in (False, True)]
    assert ["--take-over" in command for command in commands] == [False, True]
