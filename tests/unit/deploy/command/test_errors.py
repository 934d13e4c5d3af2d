import json
import sys

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from deploy import cli
from deploy.command.children import ChildFailed
from deploy.command.errors import CommandError, UsageError, is_ours, last_line_of, one_line, report, unwrap
from streaming.config import StreamSettingError


def test_a_domain_error_is_one_line_without_a_traceback(capsys):
    status = report(CommandError("no broker answers at 10.0.0.1:9092\n(setting: stream.bootstrap_servers)"))
    err = capsys.readouterr().err
    assert err == ("freshet: error: no broker answers at 10.0.0.1:9092 (setting: stream.bootstrap_servers)\n")
    assert status == 1


def test_a_usage_error_exits_with_2(capsys):
    assert report(UsageError("nobody to recommend to")) == 2


def test_debug_mode_shows_the_traceback_too(capsys, monkeypatch):
    monkeypatch.setenv("FRESHET_DEBUG", "1")
    try:
        raise CommandError("something")
    except CommandError as error:
        report(error)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("freshet: error: something\n")


def test_a_bug_keeps_its_traceback(capsys):
    try:
        {}["missing"]
    except KeyError as error:
        status = report(error)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "freshet: error: KeyError: 'missing'" in err
    assert status == 1


def test_a_value_error_of_a_library_is_a_bug_and_one_of_our_validation_is_not():
    with pytest.raises(ValueError, match="invalid literal") as from_library:
        json.loads("1", parse_int=lambda text: int(text + "x"))
    from streaming.config import StreamConfig

    with pytest.raises(StreamSettingError) as ours:
        StreamConfig(history_length=0)
    assert not is_ours(from_library.value)
    assert is_ours(ours.value)


def test_the_users_error_is_found_inside_a_ray_task_error():
    cause = StreamSettingError("stream.history_length must be at least 1, got 0")
    wrapped = RayTaskError("train", "traceback", cause, proctitle="p", pid=1, ip="127.0.0.1")
    assert unwrap(wrapped) is cause
    assert unwrap(ControllerError(wrapped)) is cause


def test_of_several_workers_failures_the_one_raised_on_purpose_is_told():
    broken = RuntimeError("Connection closed by peer")
    cause = StreamSettingError("topic gone")
    error = WorkerGroupError("two failed", {0: broken, 1: cause})
    assert unwrap(error) is cause


OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory.
Memory on the node (IP: 192.0.2.2, ID: 07b5aee2) was 23.36GB used / 23.54GB limit (0.992728)
OOM kill reason: Memory usage 3598462976B exceeded threshold of 252765104B (1.0% of 25276510208B limit)
Ray killed 1 worker(s) based on the killing policy
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"""


def test_a_node_out_of_memory_is_one_line_with_what_to_change(capsys):
    lost = RuntimeError("Connection closed by peer")
    assert report(WorkerGroupError("two failed", {0: lost, 1: OutOfMemoryError(OUT_OF_MEMORY)})) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "freshet: error: a node ran out of memory (192.0.2.2: 23.36GB of 23.54GB in use), so Ray"
    )
    assert "train.workers, table.max_rows" in line
    assert len(line) < 400
    assert one_line(OutOfMemoryError("another wording")).startswith("a node ran out of memory, so Ray killed")


def test_an_error_that_contains_itself_does_not_hang():
    error = RayTaskError("train", "traceback", RuntimeError("x"), proctitle="p", pid=1, ip="127.0.0.1")
    error.cause = error
    assert unwrap(error) is error


def test_the_last_line_of_a_log_prefers_our_own_error(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("starting\nfreshet: error: the topic 'x' is missing\n(raylet) bye\n\n")
    assert last_line_of(log) == "the topic 'x' is missing"
    log.write_text("starting\n\x1b[36m(worker)\x1b[0m Segmentation fault\n")
    assert last_line_of(log) == "(worker) Segmentation fault"
    assert last_line_of(tmp_path / "none.log") == "no log was written"


def test_main_reports_what_a_verb_raises_and_exits_with_its_status(capsys, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise ChildFailed("the trainer failed (log: x)")

    monkeypatch.setattr("deploy.verbs.status.settings", refuse)
    monkeypatch.setattr(sys, "argv", ["freshet", "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "freshet: error: the trainer failed (log: x)\n"
