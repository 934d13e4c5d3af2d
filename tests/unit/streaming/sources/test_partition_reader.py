"""A partition whose log was trimmed ahead of its reader: the gap is reported once the position is past it."""

from types import SimpleNamespace

import orjson

from streaming.events.position import Gap, Position
from streaming.events.validation import Place
from streaming.sources.partition_reader import PartitionReader
from streaming.sources.row_queue import RowQueue

PLACE = Place("t", 0, 1, max_future_ms=0, max_late_ms=0, max_message_bytes=1 << 20)


def _reader(end=None, watermark_ms=0):
    return PartitionReader(PLACE, RowQueue(Position(3, 0)), end, watermark_ms)


def _read(reader, *offsets):
    """Receives and decodes messages of one event each."""
    messages = [
        SimpleNamespace(
            offset=n,
            timestamp=1,
            headers=[],
            value=orjson.dumps({"user_id": 1, "item_id": 2, "timestamp_ms": 1000 + n}),
        )
        for n in offsets
    ]
    reader.receive(messages, offsets[-1] + 1)
    stretch = reader.decode(100, 1 << 20, 100, lambda: 1)
    reader.queue.put(stretch.decoded, stretch.fetched, stretch.size)


def test_a_gap_is_passed_when_the_rows_before_it_are_taken_and_one_behind_it_is():
    reader = _reader()
    _read(reader, 3, 4)
    reader.jump(5, 20)
    assert reader.passed_gaps() == []
    reader.queue.take(2)
    assert (reader.queue.position, reader.passed_gaps()) == ((5, 0), [])
    _read(reader, 20)
    reader.queue.take(1)
    assert reader.passed_gaps() == [Gap(5, 20, 1004)]
    assert reader.passed_gaps()[0].messages == 15


def test_with_nothing_before_it_a_gap_is_passed_at_once_and_so_is_one_before_the_end():
    reader = _reader(watermark_ms=77)
    reader.jump(3, 9)
    assert (reader.queue.position, reader.passed_gaps()) == ((9, 0), [Gap(3, 9, 77)])
    bounded = _reader(end=9)
    _read(bounded, 3)
    bounded.jump(4, 9)
    bounded.queue.take(1)
    bounded.skip_gap()
    assert bounded.passed_gaps() == [Gap(4, 9, 1003)]


def test_a_topic_that_was_created_anew_has_no_messages_between():
    assert Gap(50, 0, 0).messages == 0


def _anew(reader, begin=0, topic="new"):
    reader.begin_anew(begin, topic)
    return reader


def test_a_topic_created_anew_begins_when_the_rows_of_the_earlier_one_are_taken():
    reader = _reader()
    _read(reader, 3, 4)
    _anew(reader)
    assert not reader.turn_over()
    assert (reader.topic_id, reader.ended, reader.queue.position) == ("", False, (3, 0))
    _read(reader, 0, 1)  # of the new topic: waits, so that rows of one take are of one topic
    assert (reader.queue.ready, reader.waiting) == (2, 2)
    reader.queue.take(2)
    assert (reader.queue.position, reader.passed_gaps()) == ((5, 0), [])
    assert reader.turn_over()
    assert (reader.topic_id, reader.queue.position) == ("new", (0, 0))
    assert reader.passed_gaps() == [Gap(0, 0, 0, is_anew=True)]
    stretch = reader.decode(100, 1 << 20, 100, lambda: 1)
    reader.queue.put(stretch.decoded, stretch.fetched, stretch.size)
    (taken,) = reader.queue.take(9)
    assert taken.rows["offset"].to_pylist() == [0, 1]
    assert reader.queue.position == (2, 0)


def test_gaps_of_the_earlier_topic_stay_passed_when_the_position_is_in_a_shorter_one():
    reader = _reader(watermark_ms=9_000_000)
    reader.jump(3, 500)
    assert _anew(reader, begin=7).turn_over()
    assert reader.passed_gaps() == [Gap(3, 500, 9_000_000), Gap(0, 7, 0, is_anew=True)]
    assert reader.passed_gaps()[1].messages == 7
    _read(reader, 7)
    reader.jump(8, 12)
    assert len(reader.passed_gaps()) == 2
    _read(reader, 12)
    reader.queue.take(2)
    assert reader.passed_gaps()[2] == Gap(8, 12, 1007)  # the watermark began anew too


def test_decoding_while_the_topic_turns_over_moves_no_position():
    reader = _reader()
    _read(reader, 3, 4)
    _anew(reader)
    reader.queue.take(2)
    late = reader.decode(100, 1 << 20, 100, lambda: 1)  # its stretch is put after the turn
    assert reader.turn_over()
    reader.queue.put(late.decoded, late.fetched, late.size)
    assert (reader.queue.position, reader.queue.fetched) == ((0, 0), 0)


def test_a_letter_says_which_topic_of_the_name_it_is_of():
    reader = _anew(_reader(), topic="abcdefghijklmnopqrstuv")
    reader.turn_over()
    reader.receive([SimpleNamespace(offset=0, timestamp=1, headers=[], value=b"{")], 1)
    (letter,) = reader.decode(100, 1 << 20, 100, lambda: 1).decoded.dead
    assert letter.key == b"t/0/0/0/abcdefgh"
