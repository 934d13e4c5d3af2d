import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import BrokerPortInUse, BrokerStartError, LocalBroker

MAIN = """
import sys, time
from streaming.local_broker.broker import LocalBroker
broker = LocalBroker(sys.argv[1])
broker.start()
print(broker.pid, flush=True)
time.sleep(120)
"""


def values_of(broker: LocalBroker, topic: str) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    consumer.assign([partition])
    end = consumer.end_offsets([partition])[partition]
    values: list[bytes] = []
    while consumer.position(partition) < end:
        for records in consumer.poll(timeout_ms=1000).values():
            values += [record.value for record in records]
    consumer.close()
    return values


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_acknowledged_messages_survive_a_kill_and_a_restart_on_the_same_port(tmp_path):
    with LocalBroker(tmp_path) as broker:
        address = broker.bootstrap_servers
        create_topics(StreamConfig(bootstrap_servers=address), partitions=1)
        producer = KafkaProducer(bootstrap_servers=address, acks="all")
        for number in range(20):
            producer.send("interactions", str(number).encode()).get(timeout=10)
        producer.close()
        broker.kill()
        assert not broker.running
        broker.start()
        assert broker.bootstrap_servers == address
        assert values_of(broker, "interactions") == [str(number).encode() for number in range(20)]


def test_a_second_broker_object_goes_on_with_the_same_folder_on_other_ports(tmp_path):
    with LocalBroker(tmp_path / "data") as broker:
        create_topics(StreamConfig(bootstrap_servers=broker.bootstrap_servers), partitions=1)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        producer.send("interactions", b"kept").get(timeout=10)
        producer.close()
    with LocalBroker(tmp_path / "data") as broker:
        assert values_of(broker, "interactions") == [b"kept"]
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_port_in_use_is_named_with_its_setting(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BrokerPortInUse, match=rf"Port {port} .*broker\.port"):
            LocalBroker(tmp_path, port=port).start()


def test_an_early_exit_shows_the_log_file_and_why_it_ended(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n")
    broker = LocalBroker(tmp_path, log_path=tmp_path / "mine.log")
    with pytest.raises(BrokerStartError, match=r"(?s)ended with status 1 .*mine\.log:.*node id 7") as caught:
        broker.start()
    assert "] INFO " not in str(caught.value)
    assert "\tat " not in str(caught.value)
    assert not broker.running


def test_two_brokers_on_one_folder_are_refused(tmp_path):
    refusal = pytest.raises(BrokerStartError, match=r"Another local Kafka runs on .*broker\.data_dir")
    with LocalBroker(tmp_path), refusal:
        LocalBroker(tmp_path).start()


def test_the_broker_dies_with_its_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", MAIN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    broker_pid = int(parent.stdout.readline())
    assert is_alive(broker_pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while is_alive(broker_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(broker_pid)
