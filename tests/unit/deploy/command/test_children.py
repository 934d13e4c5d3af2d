import sys
import time

import pytest

from deploy.command.children import Child, ChildFailed


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_failed_subprocess_is_told_with_its_last_line_and_its_log(tmp_path):
    log = tmp_path / "logs" / "train.log"
    code = "import sys; print('freshet: error: the topic is missing', file=sys.stderr); sys.exit(3)"
    with Child("the trainer", python(code), log) as child:
        wait_for(lambda: child.exit_status() is not None)
        with pytest.raises(ChildFailed, match=r"exit status 3: the topic is missing \(log: .*train\.log\)"):
            child.check()


def test_a_subprocess_that_ends_well_is_done(tmp_path):
    with Child("x", python("print('hello')"), tmp_path / "x.log") as child:
        wait_for(child.check)
    assert (tmp_path / "x.log").read_text() == "hello\n"


def test_a_running_subprocess_is_stopped_on_the_way_out(tmp_path):
    with Child("x", python("import time; print(1, flush=True); time.sleep(60)"), tmp_path / "x.log") as child:
        wait_for(lambda: "1" in (tmp_path / "x.log").read_text())
        assert child.check() is False
    assert child.exit_status() == -15


def test_a_subprocess_that_ignores_sigterm_is_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(1, flush=True); time.sleep(60)"
    )
    child = Child("x", python(code), tmp_path / "x.log").start()
    wait_for(lambda: "1" in (tmp_path / "x.log").read_text())
    child.stop(grace_s=0.2)
    assert child.exit_status() == -9


def test_a_subprocess_that_was_asked_to_stop_is_not_asked_again(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
        "print(1, flush=True); [time.sleep(0.05) for _ in range(1200)]"
    )
    child = Child("x", python(code), tmp_path / "x.log").start()
    wait_for(lambda: "1" in (tmp_path / "x.log").read_text())
    child.ask_to_stop()
    wait_for(lambda: "asked" in (tmp_path / "x.log").read_text())
    child.stop(grace_s=0.2)
    assert (tmp_path / "x.log").read_text() == "1\nasked\n"


def test_a_subprocess_gets_the_environment_that_it_was_given(tmp_path):
    child = Child("x", python("import os; print(os.environ['A'])"), tmp_path / "x.log", {"A": "b"})
    with child:
        wait_for(child.check)
    assert (tmp_path / "x.log").read_text() == "b\n"
