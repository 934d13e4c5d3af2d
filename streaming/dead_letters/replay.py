"""Lists dead letters and replays corrected ones exactly once.

A corrected event and its marker (key `replayed/<key of the letter>`, on the dead-letter topic) are sent in one Kafka
transaction: a replay that crashes leaves either both or neither, and the next one skips marked letters. A run that
resumes from before the bad row writes its letter again under the same key; the marker has a key of its own.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
from kafka import TopicPartition
from kafka.errors import KafkaError

from streaming.catalogue.records import parse_items, parse_users
from streaming.codecs.codec import ENCODING_HEADER, JSON, decode_messages
from streaming.config import StreamConfig
from streaming.events.dead_letter import REPLAYED
from streaming.events.faults import LETTERS
from streaming.events.ids import problem_of_id, text_of_id
from streaming.events.mapping import FieldMapping
from streaming.events.partitioner import partition_of_texts
from streaming.events.quoting import described, quoted
from streaming.events.schema import EVENT_ID, ITEM_ID, USER_ID
from streaming.events.validation import Place
from streaming.kafka.consumer import consumer_of, known_partitions, unavailable
from streaming.kafka.transactions import transactional_producer

LETTERS_PER_TRANSACTION = 500
# A replay that dies delays readers of its partitions for at most this long.
_TRANSACTION_TIMEOUT_MS = 10_000
_MOST_DIGITS = 20
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d_.,e+-]*")


class ReplayFailed(RuntimeError):
    """A replay did not finish; what it committed stays committed, and the same command continues it."""


@dataclass(frozen=True)
class StoredLetter:
    """A dead letter, as stored in its topic.

    Attributes:
        key: where the row was read, `topic/partition/offset/row`.
        reason: what is wrong with it.
        value: the original.
        code: what kind of fault it is, one of `faults.LETTERS`.
        truncated: length of the original, if it had to be cut; else 0.
        replayed: whether it was replayed.
    """

    key: str
    reason: str
    topic: str
    partition: int
    offset: int
    row: int
    value: bytes
    code: str = "other"
    truncated: int = 0
    replayed: bool = False

    @property
    def kind(self) -> str:
        """The reason without the parts that differ from letter to letter."""
        return _VARIABLE.sub("…", self.reason)

    @property
    def event(self) -> Any:
        """The original as JSON; None if it is not JSON, or nested too deeply to be written again."""
        try:
            event = orjson.loads(self.value)
            orjson.dumps(event)
        except (orjson.JSONDecodeError, TypeError):  # orjson.JSONEncodeError is a TypeError
            return None
        return event


@dataclass
class ReplayReport:
    """What a replay did.

    Attributes:
        replayed: letters that were sent as events or records.
        already: letters that had been replayed before.
        unusable: key and problem of letters that are still unusable.
    """

    replayed: int = 0
    already: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass
class _Record:
    """Stands in for the Kafka record that a corrected letter would become, for validation."""

    topic: str
    key: bytes | None
    value: bytes
    partition: int
    offset: int = 0
    timestamp: int = 0
    headers: Sequence[tuple[str, bytes]] | None = None


def read_letters(config: StreamConfig) -> list[StoredLetter]:
    """All dead letters, in the order in which they were last written; none if their topic does not exist.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    letters: dict[bytes, StoredLetter] = {}
    replayed: set[bytes] = set()
    for record in _records(config):
        key = bytes(record.key or b"")
        if key.startswith(REPLAYED):
            replayed.add(key.removeprefix(REPLAYED))
        elif record.value is None:
            letters.pop(key, None)
        else:
            letters.pop(key, None)
            letters[key] = _letter(record)
    return [replace(letter, replayed=key in replayed) for key, letter in letters.items()]


def replay_letters(
    config: StreamConfig,
    correct: Callable[[StoredLetter], Any],
    chosen: Callable[[StoredLetter], bool] = lambda letter: True,
    *,
    dry_run: bool = False,
) -> ReplayReport:
    """Send corrected dead letters to the topics that they came from; each is sent once, even if this is called again.

    An event without an `event_id` gets one that names its letter.

    Args:
        config: the stream.
        correct: returns the event (or record) that a letter becomes, changed or not.
        chosen: selects letters.
        dry_run: only report what would be done.
    Raises:
        BrokerUnavailable: no broker answered.
        ReplayFailed: the brokers went away, or another replay runs.
    """
    report = ReplayReport()
    if dry_run:
        for _ in _corrected(config, read_letters(config), correct, chosen, report):
            report.replayed += 1
        return report
    replaying = f"freshet.replay.{config.dead_letters}"
    producer = transactional_producer(config, replaying, timeout_ms=_TRANSACTION_TIMEOUT_MS)
    try:
        # After this, an earlier replay's transaction has ended, so its markers exist or never will.
        producer.init_transactions()
        messages = _corrected(config, read_letters(config), correct, chosen, report)
        while some := list(islice(messages, LETTERS_PER_TRANSACTION)):
            producer.begin_transaction()
            for message in some:
                producer.send(
                    message.topic,
                    message.value,
                    key=message.key,
                    partition=message.partition,
                    headers=message.headers,
                )
                marker = orjson.dumps({"replayed_ms": int(time.time() * 1000)})
                producer.send(config.dead_letters, marker, key=REPLAYED + message.letter.encode())
            producer.commit_transaction()
            report.replayed += len(some)
    except KafkaError as error:
        raise ReplayFailed(
            f"the replay ended after {report.replayed} letters ({type(error).__name__}: {error}): the brokers at "
            f"{config.bootstrap_servers} went away, or another replay runs; run the same command again to continue"
        ) from error
    finally:
        producer.close(timeout=5)
    return report


@dataclass(frozen=True)
class _Message:
    topic: str
    partition: int
    key: bytes
    value: bytes
    letter: str
    headers: Sequence[tuple[str, bytes]] | None = None


def _corrected(
    config: StreamConfig,
    letters: Sequence[StoredLetter],
    correct: Callable[[StoredLetter], Any],
    chosen: Callable[[StoredLetter], bool],
    report: ReplayReport,
) -> Iterator[_Message]:
    partitions: dict[str, int] = {}
    for letter in filter(chosen, letters):
        if letter.replayed:
            report.already += 1
            continue
        topic = _destination(config, letter)
        if topic and topic not in partitions:
            with consumer_of(config) as consumer:
                partitions[topic] = len(known_partitions(config, consumer, topic))
        message, problem = _message(config, letter, correct(letter), topic, partitions.get(topic, 0))
        if message is None:
            report.unusable[letter.key] = problem
        else:
            yield message


def _destination(config: StreamConfig, letter: StoredLetter) -> str:
    """The topic that a letter is sent to: its own, or the interactions topic for rows of files. Empty for none."""
    if letter.topic.endswith(".parquet") or (config.parquet and letter.topic == config.origin):
        return config.interactions_topic
    return letter.topic if letter.topic in _topics(config) else ""


def _topics(config: StreamConfig) -> tuple[str, str, str]:
    return config.interactions_topic, config.items_topic, config.users_topic


def _message(
    config: StreamConfig, letter: StoredLetter, entry: Any, topic: str, partitions: int
) -> tuple[_Message | None, str]:
    """The message for a corrected letter, or the reason why its reader would not accept it."""
    if not topic:
        return None, f"it came from {quoted(letter.topic)}, which is not one of this stream's topics"
    if entry is None:
        return None, "the original is not JSON: provide the event in a file (--from)"
    is_event = topic == config.interactions_topic
    id_name = ITEM_ID if topic == config.items_topic else USER_ID
    if type(entry) is not dict:
        return None, f"{'an event' if is_event else 'a record'} must be an object, not {type(entry).__name__}"
    mapping = _mapping(config, topic)
    found = entry if mapping is None else mapping.event(entry) if is_event else mapping.record(entry)
    if problem := problem_of_id(id_name, found.get(id_name)):
        return None, mapping.explained(problem) if mapping else problem
    if is_event and not found.get(EVENT_ID):
        event_id = f"dead-letter:{letter.key}"
        entry = mapping.edited(entry, EVENT_ID, event_id) if mapping else {**entry, EVENT_ID: event_id}
    try:
        value, key = orjson.dumps(entry), text_of_id(found[id_name]).encode()
    except (TypeError, UnicodeEncodeError) as error:  # orjson.JSONEncodeError is a TypeError
        return None, f"it cannot be written as JSON: {described(error)}"
    home = int(partition_of_texts(pa.array([key.decode()], pa.string()), partitions)[0])
    headers = [(ENCODING_HEADER, JSON)] if config.message_format != "freshet" else None
    record = _Record(topic, key, value, home, timestamp=int(time.time() * 1000), headers=headers)
    if topic == config.items_topic:
        dead = parse_items([record], mapping)[1]  # JSON, whatever the format of other messages
    elif topic == config.users_topic:
        dead = parse_users([record], config.user_attributes, mapping)[1]
    else:
        dead = decode_messages([record], Place.of(config, topic, home, partitions)).dead
    if dead:
        return None, dead[0].reason
    return _Message(topic, home, key, value, letter.key, headers), ""


def _mapping(config: StreamConfig, topic: str) -> FieldMapping | None:
    if topic == config.items_topic:
        return FieldMapping.of_items(config)
    return FieldMapping.of_users(config) if topic == config.users_topic else FieldMapping.of_events(config)


def _letter(record: Any) -> StoredLetter:
    said = {name: bytes(value or b"").decode("utf-8", "replace") for name, value in record.headers or ()}
    partition, offset, row, truncated = (
        _number(said.get(name, "")) for name in ("partition", "offset", "row", "truncated")
    )
    return StoredLetter(
        key=bytes(record.key or b"").decode("utf-8", "replace"),
        reason=said.get("reason", ""),
        topic=said.get("topic", ""),
        partition=partition,
        offset=offset,
        row=row,
        value=bytes(record.value),
        code=said["code"] if said.get("code") in LETTERS else "other",
        truncated=truncated,
    )


def _number(text: str) -> int:
    """The number in a header; 0 if it is not a number, because any client can write to the topic."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS else 0


def _records(config: StreamConfig) -> Iterable[Any]:
    topic = config.dead_letters
    with consumer_of(config) as consumer:
        places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(places)
        if not places:
            return
        first, end = consumer.beginning_offsets(places), consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, first[place])
        deadline = time.monotonic() + config.request_timeout_s
        while any(consumer.position(place) < end[place] for place in places):
            polled = consumer.poll(timeout_ms=500)
            for records in polled.values():
                yield from records
            if polled:
                deadline = time.monotonic() + config.request_timeout_s
            elif time.monotonic() > deadline:
                raise unavailable(config, KafkaError("no records arrived"))
