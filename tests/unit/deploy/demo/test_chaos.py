import signal

from deploy.demo.chaos import WorkerKiller
from deploy.screen.progress import parse_progress


class Kills:
    def __init__(self, missing: frozenset[int] = frozenset()) -> None:
        self.sent: list[tuple[int, int]] = []
        self.missing = missing

    def __call__(self, pid: int, number: int) -> None:
        if pid in self.missing:
            raise ProcessLookupError
        self.sent.append((pid, number))


def test_the_last_worker_is_killed_once_after_the_first_checkpoint(progress_record):
    kills = Kills()
    killer = WorkerKiller(kills)
    assert killer.observe(parse_progress(progress_record(checkpoint=None))) is None
    told = killer.observe(parse_progress(progress_record()))
    assert killer.observe(parse_progress(progress_record(step=300, pids=[1, 2]))) is None
    assert kills.sent == [(4712, signal.SIGKILL)]
    assert killer.killed_pid == 4712
    assert told is not None
    assert "pid 4712" in told
    assert "step 240" in told


def test_nobody_is_killed_while_a_kill_would_cost_nothing(progress_record):
    kills = Kills()
    killer = WorkerKiller(kills)
    killer.observe(parse_progress(progress_record(step=240)))
    killer.observe(parse_progress(progress_record(state="starting")))
    killer.observe(parse_progress(progress_record(pids=[])))
    killer.observe(parse_progress(None))
    assert kills.sent == []


def test_a_worker_that_is_gone_already_is_tried_again_at_the_next_reading(progress_record):
    killer = WorkerKiller(kills := Kills(missing=frozenset({4712})))
    assert killer.observe(parse_progress(progress_record())) is None
    assert killer.killed_pid is None
    killer.observe(parse_progress(progress_record(pids=[5000, 5001])))
    assert kills.sent == [(5001, signal.SIGKILL)]
