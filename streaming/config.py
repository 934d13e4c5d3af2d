"""Settings of the stream and the arguments that every Kafka client of Freshet is opened with."""

import logging
import math
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
LostPosition = Literal["fail", "earliest", "latest"]
TimeAxis = Literal["broker", "event"]
SaslMechanism = Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"]


# At DEBUG kafka-python prints every request whole, the one with the password too.
_TALKATIVE = ("kafka.protocol.parser", "kafka.net.connection")

_SMALLEST_FLOAT32, _LARGEST_FLOAT32 = 1.2e-38, 3.4e38
# Some 30,000 years: in milliseconds it is far from the limits of int64.
_LONGEST_S = 1e12


class StreamSettingError(ValueError):
    """A setting of `stream` cannot be used; the message names the field and the value."""


@dataclass
class StreamConfig:
    """Where the events are and how they are read.

    Attributes:
        bootstrap_servers: Kafka brokers, `host:port[,host:port…]`.
        interactions_topic: events, partitioned by user.
        items_topic: compacted; title and categories of each item.
        users_topic: compacted; attributes of each user.
        consumer_group: the group whose offsets follow the checkpoints, for lag tools; nobody joins it.
        dead_letter_topic: where unusable rows go; empty means `<interactions_topic>.dead-letters`.
        security_protocol: as Kafka names it.
        sasl_mechanism: needed with SASL_PLAINTEXT and SASL_SSL.
        sasl_username: for PLAIN and SCRAM.
        sasl_password_env: name of the environment variable that holds the SASL password.
        ssl_cafile: PEM file of the authorities to trust; empty means the system's.
        ssl_certfile: PEM file of the client's certificate.
        ssl_keyfile: PEM file of the client's key.
        ssl_password_env: name of the environment variable that holds the key's password.
        ssl_check_hostname: whether the certificate must match the broker's host name.
        connect_timeout_s: how long to try before saying that no broker answers.
        request_timeout_s: how long one request may take.
        history_length: W, events of history that the model sees before a run.
        seen_length: how many of a user's last events are known for masks; at least one.
        user_attributes: the attributes that become features, in this order.
        max_categories: categories kept per item; further ones are dropped.
        positive_actions: the actions that are trained on; empty means every action that is no negative. An
            event without an action is a positive.
        action_weights: `action=weight` each, e.g. `buy=1.0`, `cart=0.5`: multiplies the weight of the event;
            an action that is not named has weight 1.
        negative_actions: the actions that say that a user did not want the item, e.g. `skip`, `impression`:
            never trained on, but what the model contrasts the user's history with. Each event is judged alone: an
            impression stays a negative when the user acts on the item later, so where only impressions without action
            are to count, the producer sends only these, once it is clear that no action follows.
        negative_below_value: an event with a value below this is such a negative whatever its action, e.g. 3 for
            ratings of 1 and 2; 0 means that no value is.
        lost_position: what to do if retention removed the position to go on from: fail stops, earliest goes on with
            the oldest message that is there, latest with the next one that comes; what is passed over is counted.
        broker_patience_s: how long a run waits for brokers that are away before it gives up.
        metadata_every_s: how often a run looks whether the topic has gained partitions.
        growth_wait_s: how long new partitions stay unread after they were noticed, so that every producer knows of
            them and none still writes by the old number; Kafka's producers ask at least every 300 s.
        from_time: where a new run begins to read, e.g. 2026-01-31T06:00:00Z or milliseconds; empty: at the start.
        until_time: where it ends (exclusive); empty means that it goes on live.
        time_axis: whether these are times of the brokers' append or of the events themselves.
        parquet: a Parquet file of events, or a folder of them, that is read instead of the interactions topic. With
            items.parquet (item_id, title, categories) or users.parquet (user_id, a column for each attribute) beside
            them, or as interactions.parquet of a data set, no broker is needed: items and users come from there too.
        parquet_partitions: over how many partitions its users are spread.
        max_row_group_bytes: most bytes that a row group of `parquet` may decode to; it is read as a whole.
        buffered_rows_per_partition: rows decoded ahead before a partition is paused (a message that a step waits for
            may exceed it).
        buffered_bytes_per_partition: the same in bytes of their messages.
        max_future_s: an event whose time is further ahead of the broker's append than this goes to the dead letters:
            it would carry the watermark away; 0 takes any.
        max_late_s: an event whose time is further behind the latest one before it in its partition than this goes to
            the dead letters; 0 takes any.
        duplicate_window: an event whose `event_id` is one of this many last ones of its partition is counted and not
            used again; events without an id are never duplicates; 0 looks for none.
        max_weight: an event whose weight, times that of its action, is above this goes to the dead letters, because a
            single one could outweigh all others; so does one whose weight is not above 0.
        max_value: an event whose value is above this, or below its negative, goes to the dead letters.
        max_message_bytes: largest message that is produced, fetched or decoded.
        max_decoded_bytes: most bytes that one message, or one compressed batch of messages, may decode to; one that
            declares or holds more is a dead letter.
        max_message_rows: most events of one Arrow message; one that declares more is a dead letter.
        fetch_max_bytes: most that one fetch brings, over all partitions.
        check_crcs: whether record batches are checked against their CRC (by the package `crc32c`; without it
            kafka-python's own plain Python would cost most of the reading time).
        fetch_max_wait_ms: how long a broker may hold a fetch that has nothing to bring.
    """

    bootstrap_servers: str = "127.0.0.1:9092"
    interactions_topic: str = "interactions"
    items_topic: str = "items"
    users_topic: str = "users"
    consumer_group: str = "freshet"
    dead_letter_topic: str = ""
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism = ""
    sasl_username: str = ""
    sasl_password_env: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_password_env: str = ""
    ssl_check_hostname: bool = True
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 30.0
    history_length: int = 50
    seen_length: int = 1024
    user_attributes: list[str] = field(default_factory=lambda: ["gender", "age_group", "occupation"])
    max_categories: int = 8
    positive_actions: list[str] = field(default_factory=list)
    action_weights: list[str] = field(default_factory=list)
    negative_actions: list[str] = field(default_factory=list)
    negative_below_value: float = 0.0
    lost_position: LostPosition = "fail"
    broker_patience_s: float = 600.0
    metadata_every_s: float = 5.0
    growth_wait_s: float = 300.0
    from_time: str = ""
    until_time: str = ""
    time_axis: TimeAxis = "broker"
    parquet: str = ""
    parquet_partitions: int = 4
    max_row_group_bytes: int = 1_073_741_824
    buffered_rows_per_partition: int = 65536
    buffered_bytes_per_partition: int = 67_108_864
    max_future_s: float = 86_400.0
    max_late_s: float = 0.0
    duplicate_window: int = 65_536
    max_weight: float = 1000.0
    max_value: float = 1e9
    max_message_bytes: int = 4_194_304
    max_decoded_bytes: int = 67_108_864
    max_message_rows: int = 65_536
    fetch_max_bytes: int = 33_554_432
    check_crcs: bool = True
    fetch_max_wait_ms: int = 100

    def __post_init__(self) -> None:
        for name in ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic"):
            self._require(name, bool(getattr(self, name).strip()), "must not be empty")
        rule = "must be host:port, or several with commas between them"
        self._require("bootstrap_servers", _are_addresses(self.bootstrap_servers), rule)
        for name in ("history_length", "seen_length", "fetch_max_wait_ms"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("from_time", "until_time"):
            rule = "must be a time like 2026-01-31T06:00:00Z, or milliseconds since 1970"
            self._require(name, _time_ms(getattr(self, name)) is not None, rule)
        in_order = not self.until_time or self.from_ms < self.until_ms
        self._require("until_time", in_order, "must be after stream.from_time")
        for name in (
            "buffered_rows_per_partition",
            "buffered_bytes_per_partition",
            "parquet_partitions",
            "max_row_group_bytes",
        ):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("connect_timeout_s", "request_timeout_s", "metadata_every_s"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        not_negative = ("max_categories", "max_future_s", "max_late_s", "duplicate_window")
        for name in (*not_negative, "broker_patience_s", "growth_wait_s"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("max_future_s", "max_late_s"):
            self._require(name, getattr(self, name) <= _LONGEST_S, f"must be at most {_LONGEST_S:g}")
        for name in ("max_weight", "max_value"):
            rule = f"must be above 0 and at most {_LARGEST_FLOAT32:g}"
            self._require(name, 0 < getattr(self, name) <= _LARGEST_FLOAT32, rule)
        self._require("max_message_bytes", self.max_message_bytes >= 1024, "must be at least 1024")
        self._require(
            "fetch_max_bytes", self.fetch_max_bytes >= self.max_message_bytes, "must be >= max_message_bytes"
        )
        self._require(
            "max_decoded_bytes",
            self.max_decoded_bytes >= self.max_message_bytes,
            "must be >= max_message_bytes",
        )
        self._require("max_message_rows", self.max_message_rows >= 1, "must be at least 1")
        unique = len(set(self.user_attributes)) == len(self.user_attributes)
        self._require("user_attributes", unique, "must not name an attribute twice")
        self._require_signals()
        needs_sasl = self.security_protocol.startswith("SASL")
        rule = "goes together with stream.security_protocol=SASL_*"
        self._require("sasl_mechanism", bool(self.sasl_mechanism) == needs_sasl, rule)

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
        # Below the smallest one a float32 is 0, and its events would be trained on for nothing.
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
        """`action_weights` taken apart; NaN where the weight is no number."""
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
        """Where the events come from, for people and dead letters."""
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
        # kafka-python wants the idle limit above the request timeout.
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
    """Milliseconds since 1970; a time without a zone is UTC. 0 for an empty text, None for what is no time."""
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
    """A password that does not show where its client logs its arguments."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"
