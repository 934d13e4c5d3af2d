"""The content of the topic: a data set for `freshet replay`, and a plain producer's events in both wire forms."""

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from kafka import KafkaProducer
from kafka.partitioner import murmur2

from tests.chaos.black_box.counting import ENCODING, HOSTILE
from tests.chaos.black_box.hostile import Hostile, encoded, hostile_messages

USERS, ITEMS = 300, 120
_TICK_S = 0.25
_FIRST_PLAIN_USER = 1000
_FLUSH_S = 120.0


def partition_of(user: int, partitions: int) -> int:
    """Kafka's own rule for the key of a user."""
    return (murmur2(str(user).encode()) & 0x7FFFFFFF) % partitions


def write_dataset(folder: Path, events: int, seed: int) -> None:
    """A folder for `freshet replay --dataset`."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    now_ms = int(time.time() * 1000) - 3_600_000
    columns = {
        "user_id": [chance.randint(1, USERS) for _ in range(events)],
        "item_id": [_item(chance) for _ in range(events)],
        "timestamp": [now_ms // 1000 + n // 1000 for n in range(events)],
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    items = {
        "item_id": list(range(1, ITEMS + 1)),
        "title": [f"item {n}" for n in range(1, ITEMS + 1)],
        "categories": [[f"c{n % 7}"] for n in range(1, ITEMS + 1)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")


def _item(chance: random.Random) -> int:
    return 1 + int(ITEMS * chance.random() ** 2)


class Feeder:
    """A plain producer in a thread: events in JSON and in Arrow until it is stopped, including hostile ones.

    Attributes:
        hostile: number of hostile messages sent, by kind.
    """

    def __init__(self, servers: str, topic: str, partitions: int, rate: float, seed: int) -> None:
        self.hostile: dict[str, int] = {}
        self._topic, self._partitions, self._rate = topic, partitions, rate
        self._chance = random.Random(seed)
        self._producer = KafkaProducer(
            bootstrap_servers=servers, delivery_timeout_ms=int(_FLUSH_S * 1000), linger_ms=5
        )
        self._homes = [self._users_of(p) for p in range(partitions)]
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)
        self._numbers = 0
        self._hostile: list[Hostile] = []

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send the remaining hostile messages, and wait until all are acknowledged.

        Raises:
            KafkaError: a message was not.
        """
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._send_hostile(self._not_sent_yet())
        self._producer.flush(timeout=_FLUSH_S)
        self._producer.close()

    def _run(self) -> None:
        try:
            ticks = 0
            while not self._stop.wait(_TICK_S):
                self._send_some(int(self._rate * _TICK_S))
                ticks += 1
                if ticks % 20 == 0:
                    self._send_hostile(self._some_hostile(4))
        except BaseException as error:
            self._error = error

    def _send_some(self, events: int) -> None:
        half = events // 2
        for _ in range(half):
            event = self._event(self._chance.choice(self._homes[self._chance.randrange(self._partitions)]))
            if self._chance.random() < 0.02:
                self._json(event)  # the same event id again: a duplicate, used and not trained on
            self._json(event)
        for partition in range(self._partitions):
            users = self._chance.choices(self._homes[partition], k=half // self._partitions)
            self._arrow(partition, [self._event(user) for user in users])

    def _event(self, user: int) -> dict[str, Any]:
        self._numbers += 1
        return {
            "user_id": user,
            "item_id": _item(self._chance),
            "timestamp_ms": int(time.time() * 1000),
            "event_id": f"n{self._numbers}",
        }

    def _json(self, event: dict[str, Any]) -> None:
        # Without a header: the default wire form.
        self._send(None, json.dumps(event).encode(), [], str(event["user_id"]).encode())

    def _arrow(self, partition: int, events: list[dict[str, Any]]) -> None:
        batch = pa.RecordBatch.from_pylist(events)
        if self._chance.random() < 0.5:  # text as Polars writes it
            at = batch.schema.get_field_index("event_id")
            batch = batch.set_column(at, "event_id", batch.column(at).cast(pa.string_view()))
        self._send(partition, encoded(batch), [(ENCODING, b"arrow")], None)

    def _some_hostile(self, count: int) -> list[Hostile]:
        """Kinds that were not sent yet; all kinds, once each was sent."""
        return (self._not_sent_yet() or self._chance.sample(self._all_hostile(), count))[:count]

    def _not_sent_yet(self) -> list[Hostile]:
        return [one for one in self._all_hostile() if one.kind not in self.hostile]

    def _all_hostile(self) -> list[Hostile]:
        return hostile_messages(self._homes[0], other_home=self._homes[1], event=self._event)

    def _send_hostile(self, messages: list[Hostile]) -> None:
        for one in messages:
            self._send(0, one.value, [*one.headers, (HOSTILE, one.bad_rows)], b"h")
            self.hostile[one.kind] = self.hostile.get(one.kind, 0) + 1

    def _send(self, partition: int | None, value: bytes, headers: list[Any], key: bytes | None) -> None:
        future = self._producer.send(self._topic, value=value, key=key, headers=headers, partition=partition)
        future.add_errback(self._failed)

    def _failed(self, error: BaseException) -> None:
        self._error = self._error or error

    def _users_of(self, partition: int) -> list[int]:
        users = range(_FIRST_PLAIN_USER, _FIRST_PLAIN_USER + USERS)
        return [user for user in users if partition_of(user, self._partitions) == partition]
