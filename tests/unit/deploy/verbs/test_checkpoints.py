"""`checkpoint list | verify | diff` on a chain that a run has written."""

import io
import json
import re
from datetime import datetime

import pytest
from typer.testing import CliRunner

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from deploy.cli import app
from deploy.command.errors import UsageError
from deploy.command.terminal import Terminal
from deploy.verbs.checkpoints import NoSuchCheckpoint, list_checkpoints, print_list
from tests.support.unit_runs import small_config, small_run, train_steps


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run, store = small_run(), CheckpointStore(folder / "checkpoints")
    checkpointer = checkpointer_of(run, store, Collectives())
    for _ in range(2):
        train_steps(run, 1)
        checkpointer.finish(run.step)
    checkpointer.close()
    return folder


def _invoke(tmp_path, folder, *arguments):
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app, ["checkpoint", *arguments, f"storage_path={folder}", "--json", str(out)], env={"COLUMNS": "200"}
    )
    return done, json.loads(out.read_text()) if out.exists() else None


def test_the_list_shows_steps_times_kinds_parents_sizes_and_events(tmp_path, run_folder):
    done, (full, delta) = _invoke(tmp_path, run_folder, "list")
    assert done.exit_code == 0
    assert (full["kind"], full["parent"], delta["kind"], delta["parent"]) == (
        "full",
        None,
        "delta",
        full["name"],
    )
    assert (full["step"], delta["step"], delta["links"]) == (1, 2, 2)
    assert delta["chain_bytes"] == full["bytes"] + delta["bytes"]
    assert full["events_trained"] < delta["events_trained"]
    assert full["written"].startswith("20")
    assert datetime.fromisoformat(full["written"]).utcoffset() is not None
    narrow = CliRunner().invoke(
        app, ["checkpoint", "list", f"storage_path={run_folder}"], env={"COLUMNS": "80"}
    )
    lines = narrow.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert [row.split()[:2] for row in lines[1:]] == [[full["name"], "full"], [delta["name"], "delta"]]
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d +\d+ (s|min|h)$", lines[1].rstrip())


def test_long_names_and_large_figures_still_fit_80_columns():
    entry = {
        "name": "step-00001200.12",
        "links": 21,
        "events_trained": 999_999_999,
        "bytes": 9_999_990_000,
        "chain_bytes": 99_999_990_000,
        "written": "2026-11-27 10:13:43.123+01:00",
    }
    out = io.StringIO()
    print_list(Terminal(file=out, width=80), [entry, {"name": "step-00001300", "error": "is damaged"}])
    lines = out.getvalue().splitlines()
    assert "step-00001200.12 delta 20 999,999,999 9,999.99 99,999.99" in re.sub(" +", " ", lines[1])
    assert max(map(len, lines)) <= 80


def test_a_damaged_file_is_named_by_verify_and_so_is_what_builds_on_it(tmp_path, run_folder):
    done, results = _invoke(tmp_path, run_folder, "verify")
    assert (done.exit_code, [r["whole"] for r in results]) == (0, [True, True])
    victim = run_folder / "checkpoints" / results[0]["name"] / "towers.safetensors"
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:-1])
        done, results = _invoke(tmp_path, run_folder, "verify")
    finally:
        victim.write_bytes(content)
    assert (done.exit_code, [r["whole"] for r in results]) == (1, [False, False])
    [bad] = [f for f in results[0]["files"] if f["problem"]]
    assert bad["name"] == "towers.safetensors"
    assert f"builds on one that cannot be used: {victim.parent} is damaged" in results[1]["problem"]
    assert "towers.safetensors has" in done.output


def test_a_diff_tells_what_a_step_changed(tmp_path, run_folder):
    names = [entry["name"] for entry in _invoke(tmp_path, run_folder, "list")[1]]
    done, found = _invoke(tmp_path, run_folder, "diff", "--old", names[0], "--new", names[1])
    assert (done.exit_code, found["identical"]) == (0, False)
    assert found["counters"]["step"] == [1, 2]
    assert "step: 1 -> 2" in done.output
    done, same = _invoke(tmp_path, run_folder, "diff", "--old", names[0], "--new", names[0])
    assert same["identical"]
    assert "bit for bit" in done.output


def test_what_is_not_there_is_refused_in_one_line(tmp_path, run_folder):
    assert isinstance(_invoke(tmp_path, run_folder, "diff")[0].exception, UsageError)
    done, _ = _invoke(tmp_path, run_folder, "verify", "--name", "step-00000099")
    assert isinstance(done.exception, NoSuchCheckpoint)
    assert "there are step-0000000" in str(done.exception)
    for verb in ("list", "verify", "audit"):
        done, found = _invoke(tmp_path, tmp_path / "nowhere", verb)
        assert isinstance(done.exception, NoSuchCheckpoint), verb
        assert "nowhere/checkpoints (setting: storage_path" in str(done.exception)
        assert found is None
    named = ("diff", "--old", "step-00000001", "--new", "step-00000002")
    assert isinstance(_invoke(tmp_path, tmp_path / "nowhere", *named)[0].exception, NoSuchCheckpoint)
    config = small_config()
    config.storage_path = str(tmp_path / "nowhere")
    with pytest.raises(NoSuchCheckpoint, match="storage_path"):
        list_checkpoints(config)
