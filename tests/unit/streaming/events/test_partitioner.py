"""The vectorised partitioner against kafka-python's own."""

import numpy as np
import pyarrow as pa
import pytest
from kafka.partitioner import murmur2

from streaming.events.partitioner import partition_of_texts, partition_of_users

EDGES = [0, 1, -1, 9, 10, 99, 100, 12345, 2**31, -(2**31), 2**63 - 1, -(2**63), -(2**63) + 1]


def _by_kafka(texts, partitions):
    return [(murmur2(text.encode()) & 0x7FFFFFFF) % partitions for text in texts]


@pytest.mark.parametrize("partitions", [1, 4, 7, 64])
def test_integer_users_go_where_kafka_sends_their_decimal_text(partitions):
    rng = np.random.default_rng(partitions)
    ids = np.concatenate([EDGES, rng.integers(-(2**63), 2**63, 500), np.arange(500)]).astype(np.int64)
    expected = _by_kafka([str(i) for i in ids], partitions)
    assert partition_of_users(ids, partitions).tolist() == expected


def test_text_users_go_where_kafka_sends_their_bytes():
    texts = ["", "a", "ab", "abc", "abcd", "abcde", "zoë", "用户-17", "x" * 100]
    whole = pa.array(["skipped", *texts])
    assert partition_of_texts(whole[1:], 16).tolist() == _by_kafka(texts, 16)
    assert partition_of_texts(pa.array(texts, pa.large_string()), 16).tolist() == _by_kafka(texts, 16)


def test_a_topic_without_partitions_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        partition_of_users(np.array([1]), 0)
