"""Describes the changes between two readings of the progress in sentences."""

from __future__ import annotations

from deploy.screen.progress import Progress
from deploy.screen.screen import index_text


def narrate(before: Progress, now: Progress) -> list[str]:
    """One sentence for each event of interest, oldest first."""
    lines = []
    if now.restarts > before.restarts:
        resized = f"the group changes from {before.workers} to {now.workers} workers"
        what = resized if 0 < before.workers != now.workers else "workers lost"
        lines.append(f"{what}; attempt {now.attempt} resumes from the last checkpoint")
    if now.state != before.state and now.state == "training":
        group = "1 worker is" if now.workers == 1 else f"{now.workers} workers are"
        lines.append(f"{group} ready at step {now.step:,}")
    if now.notice and now.notice != before.notice:
        lines.append(now.notice)
    step = now.checkpoint_step
    if step is not None and step != before.checkpoint_step:
        lines.append(f"checkpoint committed at step {step:,}")
    if now.index_version > before.index_version:
        lines.append(f"index {index_text(now)}")
    if now.dead_letters > before.dead_letters:
        lines.append(f"{now.dead_letters - before.dead_letters:,} events went to the dead-letter topic")
    return lines
