"""Creates the topics of a stream: interactions, items, users and dead letters."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    InvalidTopicError,
    KafkaConfigurationError,
    KafkaError,
    PolicyViolationError,
    SaslAuthenticationFailedError,
    SecurityDisabledError,
    TopicAlreadyExistsError,
    UnsupportedCodecError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
    UnsupportedSaslMechanismError,
    UnsupportedVersionError,
)

from streaming.config import StreamConfig, client_arguments
from streaming.kafka.clients import open_client

VISIBLE_TIMEOUT_S = 15.0
POLL_S = 0.05
_RETENTION = ("retention.ms", "retention.bytes")
_CREDENTIALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)
_HINTS: dict[tuple[type[KafkaError], ...], str] = {
    (AuthorizationError,): "give this user the right to it (kafka-acls)",
    (UnsupportedCodecError, UnsupportedCompressionTypeError): "install the package of the codec",
    (InvalidTopicError,): "check the topic names in the stream settings",
    (UnsupportedVersionError, UnsupportedForMessageFormatError): "the brokers are too old",
    (KafkaConfigurationError,): "check the stream settings",
    (PolicyViolationError, SecurityDisabledError): "check the brokers' configuration",
}
_PERMANENT = (*_CREDENTIALS, *(kind for kinds in _HINTS for kind in kinds))


class BrokerUnavailable(RuntimeError):
    """No Kafka broker answers at `stream.bootstrap_servers`."""


class BrokerRefused(RuntimeError):
    """The brokers or the client refuse a request permanently: neither waiting nor a restart helps."""


def is_permanent(error: BaseException) -> bool:
    """Whether a client's error means that the same request will never succeed."""
    return isinstance(error, (BrokerRefused, *_PERMANENT))


def refused(config: StreamConfig, error: KafkaError) -> BrokerRefused:
    """The error to raise if Kafka refused a request permanently."""
    hint = next(
        (said for kinds, said in _HINTS.items() if isinstance(error, kinds)), "check the brokers' logs"
    )
    if isinstance(error, _CREDENTIALS):
        hint = f"look at {_settings_of_security(config)}"
    return BrokerRefused(
        f"Kafka at {config.bootstrap_servers} (stream.bootstrap_servers) refuses permanently: {error}; {hint}."
    )


def unavailable(config: StreamConfig, error: KafkaError) -> BrokerUnavailable | BrokerRefused:
    """The error to raise if Kafka did not answer or refused permanently."""
    if is_permanent(error):
        return refused(config, error)
    if config.security_protocol == "PLAINTEXT":
        hint = "or stream.security_protocol, if it demands TLS or a password"
    else:
        hint = f"and check {_settings_of_security(config)}"
    return BrokerUnavailable(
        f"No Kafka broker answers at {config.bootstrap_servers} within {config.connect_timeout_s:g} s "
        f"({type(error).__name__}): start one, or set stream.bootstrap_servers, {hint}."
    )


def _settings_of_security(config: StreamConfig) -> str:
    names = ["security_protocol"]
    names += ["ssl_cafile", "ssl_check_hostname"] if "SSL" in config.security_protocol else []
    names += ["sasl_mechanism", "sasl_username", "sasl_password_env"] if config.sasl_mechanism else []
    return ", ".join(f"stream.{name}" for name in names)


class TopicError(RuntimeError):
    """A topic could not be created, or exists but cannot be used."""


def create_topics(config: StreamConfig, partitions: int = 4, replication_factor: int = -1) -> None:
    """Creates the missing ones of the four topics and waits until they can be used. Idempotent.

    Interactions follow the cluster's retention; items, users and dead letters are compacted (the last message per key
    stays). All have the broker's append time.

    Args:
        config: names of the topics and how to reach the cluster.
        partitions: partitions of the interactions topic; the others have one each.
        replication_factor: copies of every partition; -1: the cluster's default.
    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicError: the interactions topic exists with another number of partitions, or a topic
            could not be created.
    """
    if partitions < 1:
        raise ValueError(f"partitions must be at least 1, got {partitions}")
    wanted = _settings(config, partitions, replication_factor)
    with admin_client(config) as admin:
        existing = partition_counts(admin, wanted)
        count = existing.get(config.interactions_topic, partitions)
        if count != partitions:
            raise TopicError(
                f"The topic {config.interactions_topic} exists with {count} partitions, not {partitions}: "
                f"ask for {count}, or name another topic in stream.interactions_topic."
            )
        for name in sorted(set(wanted) - set(existing)):
            _create(admin, name, wanted[name])
        _wait_until_visible(admin, wanted)


def create_copy(config: StreamConfig, topic: str, source: str) -> int:
    """Create a topic like another one, with its partitions, retention, and times; returns its partitions.

    Unless it exists. Producers give the times, so that a copy keeps those of the original.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicError: it could not be created.
    """
    with admin_client(config) as admin:
        if not partition_counts(admin, [topic]):
            found = admin.describe_configs([ConfigResource("TOPIC", source)])["topic"][source]
            configs = {name: found[name]["value"] for name in _RETENTION if name in found}
            configs |= {
                "message.timestamp.type": "CreateTime",
                "max.message.bytes": str(config.max_message_bytes),
            }
            partitions = partition_counts(admin, [source])[source]
            _create(
                admin, topic, {"num_partitions": partitions, "replication_factor": -1, "configs": configs}
            )
            _wait_until_visible(admin, [topic])
        return partition_counts(admin, [topic])[topic]


def delete_topics(config: StreamConfig) -> None:
    """Deletes the existing ones of the four topics."""
    names = (config.interactions_topic, config.items_topic, config.users_topic, config.dead_letters)
    with admin_client(config) as admin:
        existing = partition_counts(admin, names)
        if existing:
            admin.delete_topics(sorted(existing))


@contextmanager
def admin_client(config: StreamConfig) -> Iterator[KafkaAdminClient]:
    """An admin client of the stream's cluster, closed at the end; a request that fails raises BrokerUnavailable.

    Raises:
        BrokerUnavailable: no broker answered.
        BrokerRefused: a broker refused permanently.
    """
    try:
        admin = open_client(KafkaAdminClient, **client_arguments(config))
    except KafkaError as error:
        raise unavailable(config, error) from error
    try:
        yield admin
    except KafkaError as error:
        raise unavailable(config, error) from error
    finally:
        admin.close()


def partition_counts(admin: KafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    """Number of partitions of each topic that exists and has a leader for every partition."""
    described = admin.describe_topics(sorted(names))
    return {t["name"]: len(t["partitions"]) for t in described if not t["error_code"] and _led(t)}


def partition_count(config: StreamConfig, topic: str) -> int:
    """The current number of a topic's partitions, asked of the brokers; 0 if it does not exist or has no leaders.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
    """
    with admin_client(config) as admin:
        return partition_counts(admin, [topic]).get(topic, 0)


def _led(topic: dict[str, Any]) -> bool:
    return all(p["leader_id"] >= 0 and not p["error_code"] for p in topic["partitions"])


def _settings(config: StreamConfig, partitions: int, replication_factor: int) -> dict[str, dict[str, Any]]:
    limits = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(config.max_message_bytes),
    }
    compacted = limits | {"cleanup.policy": "compact"}
    common: dict[str, Any] = {"num_partitions": 1, "replication_factor": replication_factor}
    names = (config.items_topic, config.users_topic, config.dead_letters)
    topics = {name: common | {"configs": compacted} for name in names}
    topics[config.interactions_topic] = common | {"num_partitions": partitions, "configs": limits}
    return topics


def _create(admin: KafkaAdminClient, name: str, settings: dict[str, Any]) -> None:
    try:
        admin.create_topics({name: settings})
    except TopicAlreadyExistsError:
        pass  # another process created it first
    except KafkaError as error:
        raise TopicError(f"The topic {name} could not be created: {error}") from error


def _wait_until_visible(admin: KafkaAdminClient, wanted: Iterable[str]) -> None:
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while missing := set(wanted) - set(partition_counts(admin, wanted)):
        if time.monotonic() > deadline:
            names = ", ".join(sorted(missing))
            raise TopicError(f"Created, but no leader after {VISIBLE_TIMEOUT_S:g} s: {names}")
        time.sleep(POLL_S)
