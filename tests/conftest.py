"""Fixtures of the whole suite: one real Apache Kafka per test session, fresh topics per test.

A test that needs Kafka fails when Kafka cannot be started; it is never skipped.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streaming.config import StreamConfig
from streaming.local_broker.broker import LocalBroker

pytest_plugins = ["tests.support.cpu_seconds"]

StreamFactory = Callable[..., StreamConfig]

# OpenMP reads this when torch is imported, which is later. The models of the tests are so small that further threads
# only spin while they wait: tests/unit/cluster/evaluation took four times as much CPU time with two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files start in this order. The first compile most Numba kernels, before several processes need them at a time; long
# files come next, so that none of them is left to one process at the end.
_FIRST = (
    "tests/unit/streaming/",
    "tests/unit/cluster/training/",
    "tests/e2e/",
    "tests/integration/test_chaos.py",
    "tests/integration/cluster/",
    "tests/integration/",
    "tests/device/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by `_FIRST`; what it does not name stays in its order, at the end."""

    def place(item: pytest.Item) -> int:
        found = [at for at, prefix in enumerate(_FIRST) if item.nodeid.startswith(prefix)]
        return min(found, default=len(_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running broker with `.bootstrap_servers`; leave it running (a chaos test starts its own)."""
    with LocalBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def unique_name() -> str:
    """A name that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def stream_factory(kafka_broker: LocalBroker) -> StreamFactory:
    """Makes a StreamConfig with topics of its own: `stream_factory(partitions=2, history_length=5)`.

    `partitions=0` creates no topics; every other argument is a field of StreamConfig.
    """
    from streaming.kafka.topics import create_topics

    def make(partitions: int = 4, **settings: Any) -> StreamConfig:
        prefix = f"t{uuid.uuid4().hex[:12]}"
        topics = {f"{kind}_topic": f"{prefix}.{kind}" for kind in ("interactions", "items", "users")}
        config = StreamConfig(bootstrap_servers=kafka_broker.bootstrap_servers, **(topics | settings))
        if partitions:
            create_topics(config, partitions=partitions)
        return config

    return make


@pytest.fixture
def stream_config(stream_factory: StreamFactory) -> StreamConfig:
    """A StreamConfig with topics of its own, 4 partitions, all created."""
    return stream_factory()


@pytest.fixture
def topic_factory(kafka_broker: LocalBroker) -> Callable[..., str]:
    """Creates one topic with a unique name: `topic_factory(partitions=1, configs={...}) -> name`."""
    from kafka import KafkaAdminClient

    def make(partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap_servers) as admin:
            settings = {"num_partitions": partitions, "replication_factor": 1, "configs": configs or {}}
            admin.create_topics({name: settings}, wait_for_metadata=True)
        return name

    return make
