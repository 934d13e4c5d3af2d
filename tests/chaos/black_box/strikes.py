"""Faults injected from outside while a run trains, and what a user may expect after each.

A strike is a function of the scene. After those in `GOES_ON` the trainer continues; those in `ENDS` end it, so that a
user must start the same command again.
"""

import errno
import os
import signal
import time
from collections.abc import Callable

from tests.chaos.black_box.commands import Command
from tests.chaos.black_box.processes import descendants, named, send
from tests.chaos.black_box.scene import Progress, RoundEnded, Scene

_CONTROLLER = "ray::TrainController"
_TAKE_OVER = "--take-over"
_STOPPED = (0,)
Strike = Callable[[Scene], None]


def worker(scene: Scene) -> None:
    """One worker is killed: the same command continues with new ones."""
    before = scene.training()
    _kill(scene, [scene.chance.choice(before["pids"])])
    scene.goes_on_from(before, same_group=False)


def broker(scene: Scene) -> None:
    """Kafka is killed and restarted on the same port and data: training waits for it."""
    before = scene.training()
    _kill(scene, [scene.broker_pid])
    scene.must_end(scene.broker, "when Kafka is killed")
    time.sleep(scene.chance.uniform(0.2, 3.0))
    scene.start_broker()
    scene.goes_on_from(before | {"step": scene.progress()["step"]}, same_group=True)


def refresh(scene: Scene) -> None:
    """Two refreshes during training: they publish, or say in one line why not; training is not affected."""
    before = scene.training()
    both = [scene.freshet("refresh") for _ in range(2)]
    for one in both:
        if one.wait(scene.patience_s) != 0:
            scene.must_end(one, "beside another refresh and a trainer")
    if all(one.status != 0 for one in both):
        scene.problem(f"neither of two refreshes published (logs: {both[0].log}, {both[1].log})")
    scene.goes_on_from(before | {"step": scene.progress()["step"]}, same_group=True)


def second(scene: Scene) -> None:
    """A second `freshet train` on the same storage is refused in one line, and the first one is not affected."""
    before = scene.training()
    other = scene.freshet("train")
    scene.must_end(other, "although another run is alive")
    scene.goes_on_from(before | {"step": scene.progress()["step"]}, same_group=True)


def full_disk(scene: Scene) -> None:
    """The storage is full for a while: training continues, and commits when there is room again."""
    before = scene.training()
    filler = scene.storage / "filler"
    _fill(filler)
    time.sleep(scene.chance.uniform(4.0, 8.0))
    _fill(filler)
    filler.unlink()

    def commits() -> bool:
        said = scene.progress()
        step = (said.get("checkpoint") or {}).get("step", 0)
        return bool(said.get("state") == "training" and step > before["step"])

    scene.wait(commits, scene.trainer, "commits a checkpoint after the disk was full")
    scene.goes_on_from(before | {"step": scene.progress()["step"]}, same_group=True)


def stopped(scene: Scene) -> None:
    """A trainer is paused, another takes over, and the first one wakes up: it must end without affecting the other."""
    before = scene.training()
    first, pids = scene.trainer, _of_run(scene, before)
    send(pids, signal.SIGSTOP)
    try:
        scene.start_trainer(_TAKE_OVER)
        successor = scene.training()
    finally:
        send(pids, signal.SIGCONT)
    scene.must_end(first, "after another took over")
    scene.must_be_gone(pids, "their storage was taken over")
    scene.goes_on_from(successor | {"step": scene.progress()["step"]}, same_group=True)


def driver(scene: Scene) -> None:
    """The command itself is killed: everything that it started ends."""
    before = scene.training()
    pids = _of_run(scene, before)
    _kill(scene, [scene.trainer.pid])
    scene.must_be_gone(pids, "the driver was killed")


def controller(scene: Scene) -> None:
    """Ray Train's controller is killed."""
    _kill_part(scene, lambda pids: named(pids, title=_CONTROLLER), "its controller was killed")


def raylet(scene: Scene) -> None:
    """The raylet is killed, and with it the node."""
    _kill_part(scene, lambda pids: named(pids, comm="raylet"), "its raylet was killed")
    _start_ray_again(scene)


def gcs(scene: Scene) -> None:
    """Ray's head service is killed."""
    _kill_part(scene, lambda pids: named(pids, comm="gcs_server"), "its GCS was killed")
    _start_ray_again(scene)


def terminate(scene: Scene) -> None:
    """SIGTERM under load: the step ends, a last checkpoint is committed."""
    _ask_to_stop(scene, signal.SIGTERM)


def interrupt(scene: Scene) -> None:
    """Ctrl-C under load: the same."""
    _ask_to_stop(scene, signal.SIGINT)


GOES_ON: dict[str, Strike] = {
    one.__name__: one for one in (worker, broker, refresh, second, full_disk, stopped)
}
ENDS: dict[str, Strike] = {
    one.__name__: one for one in (driver, controller, raylet, gcs, terminate, interrupt)
}


def _kill(scene: Scene, pids: list[int]) -> None:
    if send(pids, signal.SIGKILL) != pids or not pids:
        raise RoundEnded(f"nothing to kill: {pids} (log: {scene.trainer.log})")


def _kill_part(scene: Scene, part: Callable[[set[int]], list[int]], why: str) -> None:
    """Kill a part of the trainer's Ray; the command must end, say why, and leave no processes."""
    before = scene.training()
    pids = _of_run(scene, before)
    _kill(scene, part(pids | _of_ray(scene)))
    scene.must_end(scene.trainer, f"after {why}")
    scene.must_be_gone(pids, why)


def _ask_to_stop(scene: Scene, number: signal.Signals) -> None:
    before = scene.training()
    pids = _of_run(scene, before)
    started = time.monotonic()
    send([scene.trainer.pid], number)
    scene.must_end(scene.trainer, f"when {number.name} asks for it", statuses=_STOPPED)
    scene.stop_seconds.append(round(time.monotonic() - started, 1))
    scene.must_be_gone(pids, f"{number.name} asked them to stop")
    last = scene.progress()["step"]
    [checkpoints] = scene.answers(("checkpoint list",))
    newest = max((entry.get("step", 0) for entry in checkpoints or []), default=0)
    if newest < last:
        scene.problem(f"{number.name}: the last checkpoint is of step {newest}, training had come to {last}")


def _of_run(scene: Scene, said: Progress) -> set[int]:
    """The trainer's processes: its command's descendants, or its own workers in a shared Ray."""
    pids = scene.trainer.family()
    if scene.ray is not None:
        pids |= {*said["pids"], *named(_of_ray(scene), title=_CONTROLLER)}
    return pids


def _of_ray(scene: Scene) -> set[int]:
    return descendants(scene.ray.pid) if scene.ray is not None else set()


def _start_ray_again(scene: Scene) -> None:
    if scene.ray is None:
        return
    ended: Command = scene.ray
    pids = ended.family()
    if ended.status is None:
        send([ended.pid], signal.SIGTERM)
    ended.wait(scene.patience_s)
    # Processes that `ray start` leaves are not judged.
    send(pids, signal.SIGKILL)
    scene.start_ray()


def _fill(path: os.PathLike[str]) -> None:
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
