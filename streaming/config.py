"""Settings of the stream and the arguments that every Kafka client of Freshet is opened with."""

import logging
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from streaming.field_paths import problem_of_paths
from streaming.setting import require_declared, setting

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
LostPosition = Literal["fail", "earliest", "latest"]
TimeAxis = Literal["broker", "event"]
PartitionBy = Literal["user", "repartition"]
MessageFormat = Literal["freshet", "registry", "avro", "protobuf"]
TimestampUnit = Literal["ms", "s", "us", "ns", "iso8601"]
SaslMechanism = Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"]


# At DEBUG, kafka-python logs whole requests, including the one with the password.
_TALKATIVE = ("kafka.protocol.parser", "kafka.net.connection")

_SMALLEST_FLOAT32, _LARGEST_FLOAT32 = 1.2e-38, 3.4e38
# About 30,000 years: in milliseconds this is far below the limit of int64.
_LONGEST_S = 1e12

EVENT_FIELDS = ("user_id", "item_id", "timestamp_ms", "action", "weight", "value", "event_id")
ITEM_FIELDS = ("item_id", "title", "categories")
USER_FIELDS = ("user_id", "attributes")


class StreamSettingError(ValueError):
    """A setting of `stream` cannot be used; the message names the field and the value."""


@dataclass
class StreamConfig:
    """Where the events are and how they are read."""

    bootstrap_servers: str = setting(
        "127.0.0.1:9092", "Kafka brokers: host:port, or several with commas between them."
    )
    interactions_topic: str = setting("interactions", "Topic of the events, partitioned by user.")
    partition_by: PartitionBy = setting(
        "user",
        "user: the interactions topic is keyed by user, in Kafka's default partitioner (murmur2). repartition: a run "
        "copies stream.repartition_from, of any key, into the interactions topic by user, exactly once, and trains "
        "from that.",
    )
    repartition_from: str = setting(
        "",
        "Topic to copy from with stream.partition_by=repartition. The interactions topic is then Freshet's own.",
    )
    items_topic: str = setting("items", "Compacted topic with the title and categories of each item.")
    users_topic: str = setting("users", "Compacted topic with the attributes of each user.")
    consumer_group: str = setting(
        "freshet", "Group whose offsets follow the checkpoints, for lag tools. No consumer joins it."
    )
    dead_letter_topic: str = setting(
        "",
        "Topic for rows that cannot be used. Empty: the interactions topic's name with .dead-letters appended.",
    )
    fields: list[str] = setting(
        [],
        "Where the fields of an event are, as ours=theirs entries with dots for nested ones, for example "
        "user_id=visitor.id and timestamp_ms=occurred_at. A field that is not listed is read under its own name.",
    )
    timestamp_unit: TimestampUnit = setting(
        "ms",
        "Unit of event times that are numbers; iso8601 if they are texts like 2026-01-31T06:00:00Z. Timestamp columns "
        "of Arrow and Parquet have their own unit.",
    )
    default_action: str = setting("", "Action of events that have none. Empty: they have none.")
    message_format: MessageFormat = setting(
        "freshet",
        "What messages without the header freshet-encoding are. freshet: JSON. registry: Avro, Protobuf, or JSON with "
        "a schema's id in front (Confluent's wire format), on all three topics. avro, protobuf: of stream.schema_file.",
    )
    schema_registry: str = setting("", "Address of the schema registry, for example https://registry:8081.")
    schema_registry_user: str = setting("", "User name for the schema registry. Empty: no authentication.")
    schema_registry_password_env: str = setting(
        "", "Name of the environment variable that holds the registry's password."
    )
    schema_registry_cafile: str = setting(
        "", "PEM file of the authorities trusted for the registry. Empty: those of the system."
    )
    schema_file: str = setting(
        "",
        "Schema of the events with stream.message_format=avro (.avsc) or protobuf: a .proto file, or descriptors "
        "written by protoc --include_imports -o. #NAME after the file chooses the Protobuf message type; without it, "
        "the file's first.",
    )
    item_schema_file: str = setting("", "The same for the items topic. Empty: items are JSON.")
    user_schema_file: str = setting("", "The same for the users topic. Empty: users are JSON.")
    item_fields: list[str] = setting(
        [],
        "The same as stream.fields for the items topic: item_id, title, and categories, for example title=name and "
        "categories=tags.label.",
    )
    user_fields: list[str] = setting(
        [],
        "The same for the users topic: user_id, attributes (the object that holds them; a dot if they are in the "
        "record itself), or a name of stream.user_attributes for one of them.",
    )
    security_protocol: SecurityProtocol = setting("PLAINTEXT", "Kafka's security protocol.")
    sasl_mechanism: SaslMechanism = setting("", "SASL mechanism. Required with SASL_PLAINTEXT and SASL_SSL.")
    sasl_username: str = setting("", "User name for PLAIN and SCRAM.")
    sasl_password_env: str = setting("", "Name of the environment variable that holds the SASL password.")
    ssl_cafile: str = setting(
        "", "PEM file of the trusted certificate authorities. Empty: those of the system."
    )
    ssl_certfile: str = setting("", "PEM file of the client's certificate.")
    ssl_keyfile: str = setting("", "PEM file of the client's private key.")
    ssl_password_env: str = setting("", "Name of the environment variable that holds the key's password.")
    ssl_check_hostname: bool = setting(True, "Require that the certificate matches the broker's host name.")
    connect_timeout_s: float = setting(
        10.0, "Time to try to reach a broker before the command fails.", above=0
    )
    request_timeout_s: float = setting(30.0, "Timeout of one request.", above=0)
    history_length: int = setting(
        50, "W: events of a user's history that the model sees before an event.", at_least=1
    )
    seen_length: int = setting(
        1024, "How many of a user's most recent events are remembered for masks.", at_least=1
    )
    user_attributes: list[str] = setting(
        ["gender", "age_group", "occupation"], "User attributes that become features, in this order."
    )
    max_categories: int = setting(8, "Categories to keep of each item; further ones are dropped.", at_least=0)
    positive_actions: list[str] = setting(
        [],
        "Actions to train on. Empty: every action that is not a negative. An event without an action is positive.",
    )
    action_weights: list[str] = setting(
        [],
        "action=weight entries, for example buy=1.0 and cart=0.5, that multiply the weights of events. Actions that "
        "are not listed have weight 1.",
    )
    negative_actions: list[str] = setting(
        [],
        "Actions that say that the user did not want the item, for example skip or impression. These events are "
        "never trained on; the model contrasts the user's history with them. Each event is judged alone: an "
        "impression stays a negative even if the user acts on the item later, so to count only impressions without "
        "an action, the producer must send only those, once it is clear that no action follows.",
    )
    negative_below_value: float = setting(
        0.0,
        "Events with a value below this are negatives whatever their action, for example 3 for ratings of 1 and 2 "
        "(0 = no value makes an event negative).",
        at_least=0,
    )
    lost_position: LostPosition = setting(
        "fail",
        "What to do when retention has removed the position to continue from: stop (fail), continue with the oldest "
        "message (earliest), or with the next new one (latest). Skipped messages are counted.",
    )
    broker_patience_s: float = setting(
        600.0, "How long a run waits for unreachable brokers before it gives up.", at_least=0
    )
    metadata_every_s: float = setting(
        5.0, "How often a run checks whether the topic has new partitions.", above=0
    )
    growth_wait_s: float = setting(
        300.0,
        "How long new partitions stay unread after they are found, so that every producer knows about them and "
        "none still uses the old number. Kafka's producers refresh it at least every 300 s.",
        at_least=0,
    )
    from_time: str = setting(
        "",
        "Time at which a new run starts to read, for example 2026-01-31T06:00:00Z or milliseconds since 1970. "
        "Empty: the beginning.",
    )
    until_time: str = setting(
        "", "Time at which it stops (exclusive). Empty: it continues on the live topic."
    )
    time_axis: TimeAxis = setting(
        "broker",
        "What from_time and until_time refer to: the broker's append time, or the events' own times.",
    )
    parquet: str = setting(
        "",
        "Parquet file of events, or a folder of them, to read instead of the interactions topic. No broker is needed "
        "if items.parquet (item_id, title, categories) or users.parquet (user_id, one column per attribute) lie "
        "beside it, or if it is the interactions.parquet of a data set: items and users then come from there too.",
    )
    parquet_partitions: int = setting(
        4, "Number of partitions over which the users of the Parquet files are spread.", at_least=1
    )
    max_row_group_bytes: int = setting(
        1_073_741_824, "Maximum decoded size of a Parquet row group, which is read as a whole.", at_least=1
    )
    buffered_rows_per_partition: int = setting(
        65536,
        "Rows to decode ahead before a partition is paused; a message that a step waits for may exceed it.",
        at_least=1,
    )
    buffered_bytes_per_partition: int = setting(
        67_108_864, "The same limit in bytes of messages.", at_least=1
    )
    max_future_s: float = setting(
        86_400.0,
        "Events whose time is further than this ahead of the broker's append time become dead letters, because they "
        "would advance the watermark too far (0 = no limit).",
        at_least=0,
        at_most=_LONGEST_S,
    )
    max_late_s: float = setting(
        0.0,
        "Events whose time is further than this behind the latest time in their partition become dead letters "
        "(0 = no limit).",
        at_least=0,
        at_most=_LONGEST_S,
    )
    duplicate_window: int = setting(
        65_536,
        "Number of recent event_ids that each partition remembers; an event that repeats one is counted and not used "
        "again. Events without an id are never duplicates (0 = no search for duplicates).",
        at_least=0,
    )
    max_weight: float = setting(
        1000.0,
        "Events whose weight, multiplied by that of their action, is above this or not above 0 become dead letters, "
        "because a single one could outweigh all others.",
        above=0,
        at_most=_LARGEST_FLOAT32,
    )
    max_value: float = setting(
        1e9,
        "Events whose value is above this, or below its negative, become dead letters.",
        above=0,
        at_most=_LARGEST_FLOAT32,
    )
    max_message_bytes: int = setting(
        4_194_304, "Maximum size of a message that is produced, fetched or decoded.", at_least=1024
    )
    max_decoded_bytes: int = setting(
        67_108_864,
        "Maximum decoded size of a message or of a compressed batch of messages; a larger one becomes a dead letter. "
        "At least stream.max_message_bytes.",
    )
    max_message_rows: int = setting(
        65_536,
        "Maximum number of events in an Arrow message; a larger one becomes a dead letter.",
        at_least=1,
    )
    fetch_max_bytes: int = setting(
        33_554_432, "Maximum size of one fetch, over all partitions. At least stream.max_message_bytes."
    )
    check_crcs: bool = setting(
        True,
        "Check the CRC of record batches. This needs the package crc32c: without it, kafka-python's own check in "
        "Python takes most of the reading time.",
    )
    fetch_max_wait_ms: int = setting(
        100,
        "How long a broker may hold a fetch while there are no new messages, in milliseconds.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Check bounds, choices, addresses, times, actions, and limits that depend on one another.

        Raises:
            StreamSettingError: names the setting and its value.
        """
        require_declared("stream", self, StreamSettingError)
        for name in ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic"):
            self._require(name, bool(getattr(self, name).strip()), "must not be empty")
        rule = "must be host:port, or several with commas between them"
        self._require("bootstrap_servers", _are_addresses(self.bootstrap_servers), rule)
        for name in ("from_time", "until_time"):
            rule = "must be a time like 2026-01-31T06:00:00Z, or milliseconds since 1970"
            self._require(name, _time_ms(getattr(self, name)) is not None, rule)
        in_order = not self.until_time or self.from_ms < self.until_ms
        self._require("until_time", in_order, "must be after stream.from_time")
        for name in ("fetch_max_bytes", "max_decoded_bytes"):
            large_enough = getattr(self, name) >= self.max_message_bytes
            self._require(name, large_enough, "must be >= max_message_bytes")
        unique = len(set(self.user_attributes)) == len(self.user_attributes)
        self._require("user_attributes", unique, "must not name an attribute twice")
        self._require_signals()
        mapped = {"fields": EVENT_FIELDS, "item_fields": ITEM_FIELDS}
        mapped["user_fields"] = tuple(dict.fromkeys((*USER_FIELDS, *self.user_attributes)))
        for name, known in mapped.items():
            rule = problem_of_paths(getattr(self, name), known)
            self._require(name, not rule, f"must {rule}")
        self._require_schemas()
        copies = self.partition_by == "repartition"
        rule = "goes together with stream.partition_by=repartition"
        self._require("repartition_from", bool(self.repartition_from) == copies, rule)
        other = self.repartition_from != self.interactions_topic
        self._require("repartition_from", other, "must not be stream.interactions_topic")
        needs_sasl = self.security_protocol.startswith("SASL")
        rule = "goes together with stream.security_protocol=SASL_*"
        self._require("sasl_mechanism", bool(self.sasl_mechanism) == needs_sasl, rule)

    def _require_schemas(self) -> None:
        asks, has_files = self.message_format == "registry", self.message_format in ("avro", "protobuf")
        rule = "goes together with message_format=registry"
        self._require("schema_registry", bool(self.schema_registry) == asks, rule)
        rule = "goes together with message_format=avro or protobuf"
        self._require("schema_file", bool(self.schema_file) == has_files, rule)
        for name in ("item_schema_file", "user_schema_file"):
            self._require(name, has_files or not getattr(self, name), rule)
        scheme = self.schema_registry.partition("://")[0]
        ok = not self.schema_registry or scheme in ("http", "https")
        self._require("schema_registry", ok, "must be an http or https address")

    def _require_signals(self) -> None:
        positive, negative = set(self.positive_actions), set(self.negative_actions)
        self._require(
            "negative_actions", not positive & negative, "must name none of stream.positive_actions"
        )
        below = self.negative_below_value
        self._require("negative_below_value", 0 <= below < math.inf, "must be finite and not negative")
        rule = "must be action=weight each, no action twice, with finite weights above 0"
        weights = self.weight_of_action
        well_formed = len(weights) == len(self.action_weights) and "" not in weights
        # A smaller weight is 0 as float32, and its events would be trained on without effect.
        positive_weights = all(_SMALLEST_FLOAT32 <= w <= _LARGEST_FLOAT32 for w in weights.values())
        self._require("action_weights", well_formed and positive_weights, rule)
        # Its weight would have no effect, which can only be a mistake.
        trained = weights.keys() <= positive if positive else not weights.keys() & negative
        self._require("action_weights", trained, "must name actions that are positives only")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise StreamSettingError(f"stream.{name} {rule}, got {getattr(self, name)!r}")

    @property
    def weight_of_action(self) -> dict[str, float]:
        """`action_weights`, parsed; NaN if the weight is not a number."""
        pairs = [entry.rpartition("=") for entry in self.action_weights]
        return {action: _number(weight) for action, _, weight in pairs}

    @property
    def from_ms(self) -> int:
        """`from_time` in milliseconds; 0 if there is none."""
        return _time_ms(self.from_time) or 0

    @property
    def until_ms(self) -> int:
        """`until_time` in milliseconds; 0 if there is none."""
        return _time_ms(self.until_time) or 0

    @property
    def origin(self) -> str:
        """The source of the events, as shown to people and in dead letters."""
        return self.parquet or self.interactions_topic

    @property
    def dead_letters(self) -> str:
        """Name of the dead-letter topic, with the default filled in."""
        return self.dead_letter_topic or f"{self.interactions_topic}.dead-letters"


def client_arguments(config: StreamConfig) -> dict[str, Any]:
    """Keyword arguments common to KafkaConsumer, KafkaProducer and KafkaAdminClient.

    Raises:
        StreamSettingError: an environment variable that should hold a password is not set.
    """
    request_timeout_ms = int(config.request_timeout_s * 1000)
    arguments: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in config.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": int(config.connect_timeout_s * 1000),
        "request_timeout_ms": request_timeout_ms,
        # kafka-python requires an idle limit above the request timeout.
        "connections_max_idle_ms": max(540_000, 2 * request_timeout_ms),
        "security_protocol": config.security_protocol,
        "ssl_check_hostname": config.ssl_check_hostname,
    }
    optional = {
        "sasl_mechanism": config.sasl_mechanism,
        "sasl_plain_username": config.sasl_username,
        "sasl_plain_password": _secret("sasl_password_env", config.sasl_password_env),
        "ssl_cafile": config.ssl_cafile,
        "ssl_certfile": config.ssl_certfile,
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_password": _secret("ssl_password_env", config.ssl_password_env),
    }
    return arguments | {name: value for name, value in optional.items() if value}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _are_addresses(text: str) -> bool:
    """Whether each entry is a host (IPv6 in brackets) and a port: without one, kafka-python would take 9092."""
    for entry in text.split(","):
        host, _, port = entry.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host or ("/" in host) or (":" in host and not bracketed):
            return False
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            return False
    return True


def _time_ms(text: str) -> int | None:
    """Milliseconds since 1970; a time without a zone is UTC. 0 for an empty text, None if it is not a time."""
    if not text:
        return 0
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _secret(setting: str, variable: str) -> str:
    if not variable:
        return ""
    if variable not in os.environ:
        raise StreamSettingError(
            f"stream.{setting} names the environment variable {variable!r}, which is not set"
        )
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))
    return _Secret(os.environ[variable])


class _Secret(str):
    """A password that is not shown when its client logs its arguments."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"
