"""Runs answering in a separate process, so that loading a version and encoding do not delay training's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Protocol

import pyarrow as pa

from cluster.config import FreshetConfig
from cluster.training.served.answers import Answer

_END_S = 5.0


class Answering(Protocol):
    """Answers questions one after the other."""

    def ask(self, batch: pa.RecordBatch, step: int) -> Answer:
        """Return the answer; raises OSError if there will be none."""

    def close(self) -> None:
        """Stop; an `ask` that waits in another thread fails with OSError."""


class AnsweringProcess:
    """Runs `answering.py` until `close`, on one CPU thread, at a lower priority than training.

    Args:
        config: the run's settings.
    Raises:
        OSError: it could not be started.
    """

    def __init__(self, config: FreshetConfig) -> None:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.training.served.answering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        settings = {
            "index": config.index_location,
            "cache_bytes": int(config.index.cache_gib * 2**30),
            "max_categories": config.stream.max_categories,
            "top_k": config.progressive.top_k,
        }
        self._settings = json.dumps(settings).encode() + b"\n"

    def ask(self, batch: pa.RecordBatch, step: int) -> Answer:
        """See Answering."""
        if self._writer is None:
            self._questions.write(self._settings)
            self._questions.flush()
            self._read()  # it is ready
            self._writer = pa.ipc.new_stream(self._questions, batch.schema)
        self._writer.write_batch(batch, custom_metadata={"step": str(step)})
        self._questions.flush()
        return Answer(**json.loads(self._read()))

    def close(self) -> None:
        """See Answering. The process is terminated; unfinished work is dropped."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> bytes:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise OSError("the process that answers events from the live version has ended")
        return line
