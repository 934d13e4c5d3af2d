"""The window of event ids against a list: exact, bounded, and the same after a checkpoint."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.batches.event_ids import EventIdWindow

IDS = st.lists(st.none() | st.integers(0, 25).map(lambda n: f"id {n}"), max_size=120)


@settings(max_examples=150, deadline=None)
@given(ids=IDS, length=st.integers(1, 12), cut=st.integers(0, 120), keys=st.integers(1, 3))
def test_an_id_is_a_duplicate_if_it_is_among_the_last_ones_also_after_a_checkpoint(ids, length, cut, keys):
    window, last, expected = EventIdWindow(length), [], []
    for identifier in ids:
        expected.append(identifier is not None and identifier in last)
        if identifier is not None and identifier not in last:
            last = [*last, identifier][-length:]
    found = []
    for part in (ids[:cut], ids[cut:]):
        found += window.admit(
            pa.array(part, pa.string()), np.arange(len(part), dtype=np.int32) % keys
        ).tolist()
        again = EventIdWindow(length)
        again.load(window.to_table())
        assert again.to_table() == window.to_table()
        window = again
    assert found == expected
    assert len(window) == len(last)
