"""Our xxh64 against the xxhash package."""

import numpy as np
import pyarrow as pa
import xxhash

from streaming.events.hashing import hash_texts
from tests.support.feature_ids import attribute_id, category_id


def test_texts_of_every_length_hash_as_xxhash_says():
    texts = ["ü" * (n // 2) + "x" * (n % 2) for n in range(100)] + ["Sci-Fi", "用户"]
    expected = [np.uint64(xxhash.xxh64_intdigest(text.encode())).astype(np.int64) for text in texts]
    assert hash_texts(pa.array(texts)).tolist() == expected


def test_equal_values_of_two_attributes_have_different_ids():
    assert attribute_id("age", "1") != attribute_id("level", "1")
    assert attribute_id("age", "1") == category_id("age=1")
