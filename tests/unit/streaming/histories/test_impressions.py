"""An impression remains a negative after the user has acted on its item, on the stream and at rest."""

import numpy as np
import pyarrow as pa

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses
from cluster.evaluation.protocol.data import Tables, prepare
from cluster.evaluation.protocol.protocols import Stage
from cluster.evaluation.systems.overrides import with_settings
from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue
from streaming.events.schema import EVENT_SCHEMA
from streaming.histories.history import UserStore
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

# Item 2 is shown and bought, item 3 shown and left, item 4 shown after it was bought.
STORY = [("buy", 1), ("show", 2), ("buy", 2), ("show", 3), ("buy", 4), ("show", 4), ("buy", 5)]
# By the event's item: what is known to be unwanted just before it.
UNWANTED = {1: [], 2: [2], 4: [2, 3], 5: [2, 3, 4]}
CONFIG = with_settings(OfflineConfig(), {"stream.negative_actions": ["show"], "model.history_length": 9})


def _events():
    actions, items = zip(*STORY, strict=True)
    size = len(STORY)
    columns = {
        "user_id": [7] * size,
        "item_id": items,
        "timestamp_ms": range(1000, 1000 + size),
        "action": actions,
    }
    columns |= {name: [None] * size for name in EVENT_SCHEMA.names if name not in columns}
    return pa.RecordBatch.from_pydict({n: list(c) for n, c in columns.items()}, schema=EVENT_SCHEMA)


def _unwanted(batches):
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {row["items"][row["context_length"]]: row["negatives"] for row in rows}


def test_an_impression_that_led_to_an_action_stays_a_negative_on_the_stream():
    log = partitioned_log(_events(), 1)
    users = UserStore(CONFIG.stream.history_length, CONFIG.stream.seen_length)
    batcher = Batcher(CONFIG.stream, MemorySource(log, [0]), users, Catalogue(CONFIG.stream), NoDeadLetters())
    assert _unwanted(batcher.next_batch(1) for _ in STORY) == UNWANTED


def test_and_in_an_evaluation():
    events = pa.Table.from_batches([_events()])
    nobody = pa.table({"user_id": pa.array([], pa.int64())})
    nothing = pa.table(
        {
            "item_id": pa.array([], pa.int64()),
            "title": pa.array([], pa.string()),
            "categories": pa.array([], pa.list_(pa.string())),
        }
    )
    split = prepare(Tables("story", events, nothing, nobody), CONFIG).split
    batches = []
    for place in range(len(UNWANTED)):
        # A row that begins at this event, as a stretch of a walk-forward has it.
        stretch = Stage(split.test, np.array([place]), np.array([place + 1]), tested=False)
        reader = TrainingPasses(split, PassSettings(9, 9, mask_all=False, first_events=True, seed=1), stretch)
        batches += reader.batches(1)
    assert _unwanted(batches) == UNWANTED
