"""Cutting anywhere: rows, dead letters and positions of a partition's queue."""

import numpy as np
import pyarrow as pa
import pytest

from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Position
from streaming.events.schema import DECODED_SCHEMA
from streaming.events.validation import Decoded
from streaming.sources.row_queue import RowQueue


def _stretch(places, dead=()):
    """A decoded stretch with a row at each (offset, row); those in `dead` are unusable."""
    usable = [p for p in places if p not in dead]
    n = len(usable)
    ones = ("user_id", "item_id", "timestamp_ms", "weight", "partition", "append_ms", "key_hash")
    columns = {name: [1] * n for name in ones}
    columns |= {name: [None] * n for name in ("action", "value", "event_id")}
    columns |= {"offset": [o for o, _ in usable], "row": [r for _, r in usable]}
    rows = pa.RecordBatch.from_pydict(columns, schema=DECODED_SCHEMA)
    return Decoded(rows, [DeadLetter("bad", "t", 0, o, r, b"") for o, r in places if (o, r) in dead])


def _places(stretches):
    rows = [
        p for s in stretches for p in zip(*(s.rows[c].to_pylist() for c in ("offset", "row")), strict=True)
    ]
    return sorted(rows + [(letter.offset, letter.row) for s in stretches for letter in s.dead])


def test_every_cut_leads_to_the_position_of_the_next_row():
    queue = RowQueue(Position(3, 0))
    queue.put(_stretch([(3, 0), (3, 1), (5, 0), (5, 1)], dead={(3, 1), (5, 0)}), 6)
    queue.put(_stretch([(7, 0)]), 8)
    seen = []
    while queue.ready:
        (taken,) = queue.take(1)
        seen.append((_places([taken])[0], queue.position))
    assert seen == [
        ((3, 0), (3, 1)),
        ((3, 1), (4, 0)),
        ((5, 0), (5, 1)),
        ((5, 1), (6, 0)),
        ((7, 0), (8, 0)),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_going_on_from_any_position_gives_exactly_the_other_rows(seed):
    rng = np.random.default_rng(seed)
    places = [(int(o), r) for o in np.cumsum(rng.integers(1, 3, 30)) for r in range(rng.integers(1, 9))]
    dead = {p for p in places if rng.random() < 0.2}
    queue = RowQueue(Position(0, 0))
    queue.put(_stretch(places, dead), places[-1][0] + 1)
    cut = int(rng.integers(0, len(places)))
    taken = queue.take(cut)
    again = RowQueue(queue.position)
    again.put(_stretch([p for p in places if p[0] >= queue.position.offset], dead), places[-1][0] + 1)
    rest = again.take(len(places))
    assert _places(taken) == places[:cut]
    assert _places(rest) == places[cut:]
    assert again.position == (places[-1][0] + 1, 0)


def test_a_gap_at_the_end_is_passed_only_when_it_is_known_and_nothing_is_left():
    queue = RowQueue(Position(0, 0))
    queue.put(_stretch([(0, 0)]), 1)
    queue.skip_gap(3)
    assert queue.position == (0, 0)
    queue.take(1)
    queue.skip_gap(3)
    assert queue.position == (1, 0)
    queue.put(Decoded(), 3)
    assert queue.next_offset() == 3
    queue.skip_gap(3)
    assert queue.position == (3, 0)
