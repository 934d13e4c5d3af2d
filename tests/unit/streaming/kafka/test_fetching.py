"""Fetches with batches that decompress to too much, and with long and broken records, in every codec and format."""

from collections import Counter

import pytest
from kafka import TopicPartition
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from streaming.codecs.codec import decode_messages
from streaming.events.unreadable import Unreadable
from streaming.events.validation import Place
from streaming.kafka.decompression import GZIP, LZ4, SNAPPY, ZSTD, TooLarge, decompress
from streaming.kafka.fetching import _Limits, _Records

LIMITS = _Limits(batch=1 << 20, message=1 << 16, poll=1 << 18)
CODECS = {"none": 0, "gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}


def _batch(codec, values, first=0, headers=()):
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 30)
    for n, value in enumerate(values):
        builder.append(n, 1000, b"key", value, list(headers))
    batch = bytearray(builder.build())
    batch[:8] = first.to_bytes(8, "big")  # outside of what the checksum covers
    return bytes(batch)


def _read(fetch, at=0, most=None, codecs=None):
    """All records of a fetch, as polls return them, and where the next fetch begins."""
    records = _Records(LIMITS, codecs, at, TopicPartition("t", 0), MemoryRecords(fetch))
    polls = []
    while records:
        polls.append(records.take(most))
        if not polls[-1]:
            break
    return polls, records.next_fetch_offset


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_of_each_codec_is_read_and_one_that_is_too_large_is_one_record_at_its_last_offset(codec):
    small, large = [b"a" * 10, b"b" * 20], [b"c" * 400_000] * 3
    codecs = Counter()
    fetch = _batch(codec, small) + _batch(codec, large, first=2) + _batch(codec, small, first=5)
    polls, after = _read(fetch, codecs=codecs)
    # A batch that compression would not make smaller is not compressed.
    assert codecs.total() == 3
    assert codecs[next(name for name, number in CODECS.items() if number == codec)] > 0
    records = [record for poll in polls for record in poll]
    assert after == 7
    fine = [(r.offset, r.value) for r in records if not isinstance(r.value, Unreadable)]
    assert fine == [(0, small[0]), (1, small[1]), (5, small[0]), (6, small[1])]
    refused = [r for r in records if isinstance(r.value, Unreadable)]
    if codec:
        (record,) = refused
        assert record.offset == 4
        assert "offsets 2 to 4" in record.value.reason
        assert "stream.max_decoded_bytes=1048576" in record.value.reason
    else:
        assert [r.offset for r in refused] == [2, 3, 4]
        assert {(len(r.value), r.value.length) for r in refused} == {(1 << 16, 400_000)}
    decoded = decode_messages(refused, Place("t", 0, 1, max_message_bytes=1 << 16))
    assert [(d.offset, d.reason) for d in decoded.dead] == [(r.offset, r.value.reason) for r in refused]
    assert {d.code for d in decoded.dead} == {"too_large"}


@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY, LZ4])
def test_the_format_of_before_kafka_0_11_is_bounded_too(codec):
    def legacy(values):
        builder = LegacyRecordBatchBuilder(1, codec, 1 << 30)
        for n, value in enumerate(values):
            builder.append(n, 1000, b"key", value)
        return bytes(builder.build())

    ((first, second),), after = _read(legacy([b"one", b"two"]), most=10)[0][:1], 2
    assert [(r.offset, r.value) for r in (first, second)] == [(0, b"one"), (1, b"two")]
    assert after == 2
    if codec:
        (record,) = _read(legacy([b"c" * 900_000] * 2))[0][0]
        assert "stream.max_decoded_bytes" in record.value.reason


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_damaged_batch_is_one_record_and_what_is_behind_it_is_read(codec):
    good = _batch(codec, [b"fine" * 50] * 3)
    damaged = good[:70] + bytes(len(good) - 70)
    records = _Records(
        LIMITS,
        None,
        0,
        TopicPartition("t", 0),
        MemoryRecords(damaged + _batch(codec, [b"on"], 3)),
        check_crcs=False,
    ).take()
    assert [(r.offset, isinstance(r.value, Unreadable)) for r in records] == [(2, True), (3, False)]


def test_a_poll_ends_at_its_bytes_and_headers_count():
    polls, after = _read(_batch(0, [b"v" * 50_000] * 20))
    assert after == 20
    assert max(map(len, polls)) == 6
    polls, _ = _read(_batch(ZSTD, [b""] * 10, headers=[("h", b"")] * 1000))
    assert max(map(len, polls)) == 2


def test_reading_in_the_middle_of_a_batch_that_is_too_large_meets_it_once():
    fetch = _batch(GZIP, [b"c" * 400_000] * 4)
    for at in range(4):
        polls, after = _read(fetch, at=at)
        assert [(r.offset, after) for poll in polls for r in poll] == [(3, 4)]


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_bound_is_kept_to_the_byte(codec):
    from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode

    encode = {GZIP: gzip_encode, SNAPPY: snappy_encode, LZ4: lz4_encode, ZSTD: zstd_encode}[codec]
    data = encode(b"0123456789" * 100_000)
    assert decompress(codec, data, 1_000_000) == b"0123456789" * 100_000
    with pytest.raises(TooLarge):
        decompress(codec, data, 999_999)
    if codec != ZSTD:  # which gives what there is; the records in it are then too few
        with pytest.raises(ValueError, match="cannot be decompressed"):
            decompress(codec, data[: len(data) // 2], 1_000_000)
