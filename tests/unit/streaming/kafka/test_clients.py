"""What a Kafka client that reaches no broker leaves behind."""

import gc
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from streaming.config import StreamConfig
from streaming.kafka.consumer import open_consumer
from streaming.kafka.topics import BrokerUnavailable, admin_client


@pytest.fixture
def nobody():
    """Settings of a cluster whose address refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield StreamConfig(
            bootstrap_servers=f"127.0.0.1:{bound.getsockname()[1]}",
            connect_timeout_s=0.2,
            request_timeout_s=1.0,
        )


def administer(config):
    with admin_client(config):
        raise AssertionError("nobody listens")


@pytest.mark.parametrize("connect", [open_consumer, administer])
def test_a_client_that_reaches_no_broker_leaves_no_thread_and_no_socket(nobody, connect, caplog):
    caplog.set_level(logging.CRITICAL, logger="kafka")  # records that pytest keeps hold connections
    threads, before = set(threading.enumerate()), sockets()
    for _ in range(3):
        with pytest.raises(BrokerUnavailable):
            connect(nobody)
    assert set(threading.enumerate()) == threads
    assert sockets() <= before


def sockets():
    """Of this process."""
    gc.collect()  # exceptions hold connections and themselves
    files = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(file.is_symlink() and str(file.readlink()).startswith("socket:") for file in files)
