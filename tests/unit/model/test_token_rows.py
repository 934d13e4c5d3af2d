"""Sequences in shared rows: every token occurs exactly once, where the index says."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.token_rows import pack

LENGTHS = st.lists(st.integers(0, 90) | st.integers(0, 3), max_size=40)


def _packed(lengths):
    tokens = np.arange(1, sum(lengths) + 1)
    return tokens, pack(tokens, np.array(lengths, np.int64))


@settings(deadline=None, max_examples=100)
@given(LENGTHS)
def test_every_token_stands_exactly_once_in_order_and_next_to_its_neighbours(lengths):
    tokens, rows = _packed(lengths)
    flat, sequence, within = (
        a.reshape(-1).numpy() for a in (rows.token_RL, rows.sequence_RL, rows.within_RL)
    )
    assert sorted(flat[flat != 0].tolist()) == tokens.tolist()
    starts = np.cumsum(lengths) - lengths if lengths else []
    for n, length in enumerate(lengths):
        place = int(rows.start_N[n])
        own = slice(place, place + length)
        assert flat[own].tolist() == tokens[starts[n] : starts[n] + length].tolist()
        assert sequence[own].tolist() == [n] * length
        assert within[own].tolist() == list(range(length))
        if length:
            assert place // rows.token_RL.shape[1] == (place + length - 1) // rows.token_RL.shape[1]
    assert rows.length_N.tolist() == lengths
    padding = flat == 0
    assert (sequence[padding] == -1).all()
    assert (within[padding] == 0).all()


@settings(deadline=None, max_examples=100)
@given(LENGTHS)
def test_a_row_is_no_longer_than_the_longest_sequence_or_64_and_its_padding_stands_to_the_right(lengths):
    rows = _packed(lengths)[1]
    count, width = rows.token_RL.shape
    assert width <= max(64, *lengths, 0)
    valid = (rows.token_RL != 0).long()
    assert (valid.diff(dim=1) <= 0).all()
    assert valid.any(1).all()
    assert count <= sum(length > 0 for length in lengths)


@settings(deadline=None, max_examples=100)
@given(LENGTHS)
def test_two_neighbouring_rows_are_never_half_empty_both(lengths):
    used = (_packed(lengths)[1].token_RL != 0).sum(1)
    width = _packed(lengths)[1].token_RL.shape[1]
    assert (used[:-1] + used[1:] > width).all()


def test_sequences_without_tokens_take_no_row_and_may_be_all_there_is():
    rows = pack(np.zeros(0, np.int64), np.zeros(3, np.int64))
    assert rows.token_RL.shape == (0, 1)
    assert rows.length_N.tolist() == rows.start_N.tolist() == [0, 0, 0]


def test_short_sequences_share_a_row_of_64_and_a_longer_one_sets_the_width():
    assert pack(np.ones(96, np.int64), np.full(16, 6)).token_RL.shape == (2, 64)
    assert pack(np.ones(104, np.int64), np.array([4, 70, 30])).token_RL.shape == (2, 70)


def test_rows_are_shared_only_where_there_are_fewer_of_them_than_sequences():
    assert pack(np.ones(4, np.int64), np.array([2, 2])).shared
    assert not pack(np.ones(130, np.int64), np.array([65, 65])).shared
    assert not pack(np.ones(4, np.int64), np.array([4])).shared


def test_moving_to_a_device_moves_every_tensor():
    moved = pack(np.ones(4, np.int64), np.array([3, 1])).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}
