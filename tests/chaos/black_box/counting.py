"""The independent count: a plain consumer that reads the whole topic and decodes both wire forms.

It shares no code with Freshet. Its producer marks the unusable rows of each message in a header (`HOSTILE`), so that
this count need not apply Freshet's rules.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition

# Numbers of the unusable rows, separated by commas, or ALL: the whole message is one dead letter.
HOSTILE = "black-box-hostile"
ALL = b"all"
ENCODING = "freshet-encoding"

_POLL_MS = 500


@dataclass
class Counts:
    """The content of a topic.

    Attributes:
        by_user: usable events of each user id.
        hostile: expected number of dead letters.
        messages: number of messages, by wire form.
    """

    by_user: Counter[int] = field(default_factory=Counter)
    hostile: int = 0
    messages: Counter[str] = field(default_factory=Counter)

    def add(self, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        """Count one message."""
        said = dict(headers or ())
        encoding, hostile = said.get(ENCODING, b"json").decode(errors="replace"), said.get(HOSTILE)
        self.messages[encoding] += 1
        if hostile == ALL:
            self.hostile += 1
            return
        bad = {int(row) for row in hostile.split(b",")} if hostile else set()
        users = users_in(value, encoding)
        self.hostile += len(bad)
        self.by_user.update(user for row, user in enumerate(users) if row not in bad)


def users_in(value: bytes, encoding: str) -> list[int]:
    """The user of each row of a message."""
    if encoding == "arrow":
        with pa.ipc.open_stream(io.BytesIO(value)) as reader:
            return [user for batch in reader for user in batch.column("user_id").to_pylist()]
    return [json.loads(value)["user_id"]]


def count_topic(servers: str, topic: str) -> Counts:
    """Read a topic from its beginning to its current end."""
    counts = Counts()
    with KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, allow_auto_create_topics=False
    ) as consumer:
        partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=_POLL_MS).values():
                for record in records:
                    counts.add(record.value or b"", record.headers)
    return counts
