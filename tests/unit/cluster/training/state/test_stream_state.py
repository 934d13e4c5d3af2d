"""A run's record of skipped messages: counted once, whichever rank continues reading, and in the manifest."""

import pytest

from cluster.checkpoints.parts.stream import merged_stream
from cluster.training.state.stream_state import Epoch, StreamState
from streaming.batches.admission import Admission
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Gap


@pytest.fixture
def state():
    return StreamState(Admission(StreamConfig()), 2)


def _letters(partition, *offsets):
    return [DeadLetter("bad", "t", partition, offset, 0, b"") for offset in offsets]


def test_every_gap_is_counted_once_and_reading_went_on_behind_the_last(state):
    first, second = Gap(5, 20, 1000), Gap(30, 33, 2000)
    assert state.note_gaps({}) == {}
    assert state.note_gaps({1: [first]}) == {1: 20}
    assert state.note_gaps({1: [first]}) == {}
    assert state.note_gaps({0: [second], 1: [first, second]}) == {0: 33, 1: 33}
    assert state.skipped == {0: 3, 1: 18}
    assert state.behind == {0: (33, 2000), 1: (33, 2000)}


def test_dead_letters_are_told_apart_by_the_gap(state):
    state.count_dead(_letters(0, 1, 2) + _letters(1, 9))
    state.note_gaps({0: [Gap(4, 20, 0)]})
    # A batch may hold rows from both sides.
    state.count_dead(_letters(0, 3, 20, 25))
    assert (state.dead, state.dead_before) == ({0: 2, 1: 1}, {0: 3})


def test_the_manifest_has_what_all_ranks_know(state):
    other = StreamState(Admission(StreamConfig()), 2)
    state.note_gaps({0: [Gap(5, 20, 1000)]})
    other.count_dead(_letters(1, 9))
    whole = merged_stream([state.to_json(), other.to_json()])
    assert (whole["skipped"], whole["behind"], whole["dead"]) == ({"0": 15}, {"0": (20, 1000)}, {"1": 1})


def test_a_topic_created_anew_leaves_the_watermark_and_the_epochs_of_the_earlier_one_behind():
    state = StreamState(Admission(StreamConfig()), 2)
    state.epochs.append(Epoch(1, {0: 500}))
    state.admission.watermark_ms |= {0: 9000, 1: 8000}
    state.dead |= {0: 3}
    assert state.note_gaps({0: [Gap(0, 0, 0, is_anew=True)]}) == {0: 0}
    assert (state.skipped, state.behind, state.earlier_epochs) == ({0: 0}, {0: (0, 0)}, {0: 1})
    assert (state.dead, state.dead_before) == ({}, {0: 3})
    assert state.admission.watermark_ms == {1: 8000}
    state.note_gaps({0: [Gap(0, 0, 0, is_anew=True)]})  # noted already
    assert state.skipped == {0: 0}
