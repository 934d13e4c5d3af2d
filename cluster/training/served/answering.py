"""The answering process: reads questions as an Arrow stream on stdin, and writes one line of JSON for each on stdout.

It ends with its stdin and with the thread that started it (`answering_process.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.training.served.answers import LiveAnswers

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until stdin ends."""
    # Before the imports, which take seconds, so that a killed trainer leaves no process behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and ends this process
    os.nice(5)  # training has priority
    says = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    settings = sys.stdin.buffer.readline()
    if settings:
        answers = _live_answers(json.loads(settings))
        says.write("ready\n")
        _answer_all(answers, says.write)


def _answer_all(answers: LiveAnswers, say: Any) -> None:
    import pyarrow as pa

    started_s: float | None = None
    with pa.ipc.open_stream(sys.stdin.buffer) as questions:
        while True:
            try:
                asked = questions.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            answer = answers.answer(asked.batch, int(asked.custom_metadata[b"step"]))
            now_s = time.process_time()
            # The first answer reads libraries and kernels, and belongs to the start of the process.
            if started_s is None and (answer.version or answer.problem):
                started_s = now_s
            spent_s = 0.0 if started_s is None else now_s - started_s
            say(json.dumps(asdict(replace(answer, cpu_s=spent_s))) + "\n")


def _live_answers(settings: dict[str, Any]) -> LiveAnswers:
    from cluster.training.served.answers import LiveAnswers
    from cluster.training.served.recent_models import RecentModels
    from retrieval.storage.cache import FileCache
    from retrieval.versions.store import VersionStore
    from streaming.config import StreamConfig

    store = VersionStore(settings["index"], FileCache(most_bytes=int(settings["cache_bytes"])))
    models = RecentModels(store, StreamConfig(max_categories=settings["max_categories"]))
    return LiveAnswers(models, settings["top_k"])


if __name__ == "__main__":
    main()
