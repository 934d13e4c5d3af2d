"""What the workers of the resume benchmark run, and what they note of it: when their function ran, and stepped."""

import os
import time
from pathlib import Path
from typing import Any

STRUCK = "struck"
RUNNING, STEPPED = "running", "stepped"
_POLL_S = 0.05


def train_and_note(settings: dict[str, Any]) -> None:
    """The product's own train function; the first step of each attempt is noted on every rank."""
    import ray.train

    from cluster.launching.rank import train_on_rank
    from cluster.training.worker import Worker

    notes, rank = Path(settings["notes"]), ray.train.get_context().get_world_rank()
    note(notes, RUNNING, rank)
    step = Worker._step

    def noted_step(worker: Worker, *, ahead: bool) -> None:
        before = worker.run.step
        step(worker, ahead=ahead)
        if worker.run.step > before:
            note(notes, STEPPED, rank)
            Worker._step = step  # type: ignore[method-assign]

    Worker._step = noted_step  # type: ignore[method-assign]
    train_on_rank(settings)


def run_and_note(settings: dict[str, Any]) -> None:
    """Nothing: the first group waits to be killed, the second has done its work by running."""
    import ray.train

    notes, rank = Path(settings["notes"]), ray.train.get_context().get_world_rank()
    note(notes, RUNNING, rank)
    if not (notes / STRUCK).exists():
        while True:
            time.sleep(_POLL_S)


def note(notes: Path, what: str, rank: int) -> None:
    """Write down that this process does something now."""
    now = time.time()
    whole = notes / f".{what}-{os.getpid()}"
    whole.write_text(f"{now!r}")
    whole.rename(notes / f"{what}-{rank}-{os.getpid()}")


def noted(notes: Path, what: str, after: float = 0.0) -> dict[int, tuple[int, float]]:
    """Process id and time of what each rank noted last, if it was after a time."""
    found: dict[int, tuple[int, float]] = {}
    for path in notes.glob(f"{what}-*"):
        _, rank, pid = path.name.split("-")
        at = float(path.read_text())
        if at > after and at > found.get(int(rank), (0, 0.0))[1]:
            found[int(rank)] = (int(pid), at)
    return found
