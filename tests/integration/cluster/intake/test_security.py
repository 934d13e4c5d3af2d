"""Every Kafka client of a run with a broker that requires TLS and a password, which is never shown."""

import json
import logging
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from typer.testing import CliRunner

from cluster.audit.exactly_once import verify_exactly_once
from deploy.cli import app
from streaming.config import StreamConfig, StreamSettingError, client_arguments
from streaming.dead_letters.replay import replay_letters
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.catalogue import publish_catalogue
from streaming.sources.kafka_source import BrokerUnavailable, partitions_of
from tests.support.certificates import make_certificates
from tests.support.worker_runs import config_of, events, produce, send_raw, train

SECRET = "correct-horse-7391"
JAAS = "org.apache.kafka.common.security"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _properties(port: int, broker_file: Path) -> dict[str, str]:
    ours = "listener.name.sasl_ssl"
    scram = f"{JAAS}.scram.ScramLoginModule required;"
    everywhere = "PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:" + str(port)
    return {
        "listeners": everywhere + ",CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": everywhere,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        f"{ours}.ssl.keystore.type": "PEM",
        f"{ours}.ssl.keystore.location": str(broker_file),
        f"{ours}.plain.sasl.jaas.config": f'{JAAS}.plain.PlainLoginModule required user_alice="{SECRET}";',
        f"{ours}.scram-sha-512.sasl.jaas.config": scram,
    }


def test_a_run_on_a_broker_that_demands_tls_and_a_password_which_nothing_ever_tells(
    tmp_path, monkeypatch, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", SECRET)
    authority, broker_file = make_certificates(tmp_path)
    port = _free_port()
    with LocalBroker(tmp_path / "kafka", properties=_properties(port, broker_file)) as broker:
        with KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            scram = UserScramCredentialUpsertion(
                "alice", ScramMechanism.SCRAM_SHA_512, SECRET, iterations=4096
            )
            admin.alter_user_scram_credentials([scram])
        stream = StreamConfig(
            bootstrap_servers=f"127.0.0.1:{port}",
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            sasl_username="alice",
            sasl_password_env="TEST_KAFKA_PASSWORD",
            ssl_cafile=str(authority),
            connect_timeout_s=5.0,
        )
        for mechanism in ("PLAIN", "SCRAM-SHA-512"):
            topics = {f"{kind}_topic": f"{mechanism}.{kind}" for kind in ("interactions", "items", "users")}
            mine = replace(stream, sasl_mechanism=mechanism, **topics)
            create_topics(mine, partitions=1)
            publish_catalogue(mine, pa.table({"item_id": [1, 2], "title": ["one", "two"]}), None)
            produce(mine, events(80))
            send_raw(mine, [{"value": {"user_id": 1, "timestamp_ms": 5}}])
            config = config_of(mine, tmp_path / mechanism)
            train(0, config)
            assert replay_letters(mine, lambda letter: {**letter.event, "item_id": 1}).replayed == 1
            (progress,) = train(0, config)
            assert progress["events_trained"] == 81
            assert verify_exactly_once(config).exactly_once
        _refused(stream, authority, tmp_path, monkeypatch)
    told = caplog.text + "".join(capfd.readouterr())
    assert "alice" in told or "SASL" in told  # the clients did talk of it
    assert not [line for line in told.splitlines() if SECRET in line]
    written = [f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and "kafka" not in f.parts]
    assert len(written) > 20
    assert not any(SECRET.encode() in content for content in written)
    assert any(b"TEST_KAFKA_PASSWORD" in content for content in written)


def _refused(stream: StreamConfig, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes without TLS, without trust or with a wrong password learns which setting to look at."""
    plain = replace(stream, security_protocol="PLAINTEXT", sasl_mechanism="", connect_timeout_s=1.0)
    with pytest.raises(BrokerUnavailable, match=r"stream\.security_protocol"):
        partitions_of(plain, stream.interactions_topic)
    with pytest.raises(BrokerUnavailable, match=r"stream\.ssl_cafile"):
        partitions_of(replace(stream, ssl_cafile="", connect_timeout_s=1.0), stream.interactions_topic)
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", SECRET[::-1])
    with pytest.raises(BrokerUnavailable, match=r"stream\.sasl_password_env") as wrong:
        partitions_of(replace(stream, connect_timeout_s=1.0), stream.interactions_topic)
    assert SECRET[::-1] not in str(wrong.value)
    monkeypatch.delenv("TEST_KAFKA_PASSWORD")
    with pytest.raises(StreamSettingError, match="TEST_KAFKA_PASSWORD"):
        client_arguments(stream)
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", SECRET)
    named = ["stream.sasl_password_env=TEST_KAFKA_PASSWORD", "--json", str(tmp_path / "settings.json")]
    shown = CliRunner().invoke(app, ["settings", *named])
    assert shown.exit_code == 0
    assert SECRET not in shown.output
    entries = json.loads((tmp_path / "settings.json").read_text())
    assert any(entry["value"] == "TEST_KAFKA_PASSWORD" for entry in entries)
