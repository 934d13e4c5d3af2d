"""Which items a delta encodes: new ones at once, then those that moved most, weighted by their traffic."""

import numpy as np

from cluster.deltas.waiting_items import WaitingItems


def add(waiting, ids, moved, traffic=None, fresh=None):
    ids = np.array(ids, np.int64)
    waiting.add(
        ids,
        np.stack([ids * 10, ids * 0], axis=1),
        np.array(moved, np.float64),
        np.zeros(len(ids)) if traffic is None else np.array(traffic, np.float64),
        np.zeros(len(ids), np.bool_) if fresh is None else np.array(fresh, np.bool_),
    )


def chosen(waiting):
    return sorted(waiting.choose()[0].tolist())


def test_new_items_come_first_then_those_that_moved_most():
    waiting = WaitingItems(budget=3, width=2, most_moved=1000)
    add(waiting, [1, 2, 3, 4], [0.1, 0.4, 0.3, 0.2])
    add(waiting, [9], [0.0], fresh=[True])
    assert chosen(waiting) == [2, 3, 9]


def test_traffic_weighs_a_move():
    waiting = WaitingItems(budget=1, width=2, most_moved=1000)
    add(waiting, [1, 2], [0.1, 0.2], traffic=[5.0, 0.0])
    assert chosen(waiting) == [1]


def test_small_moves_add_up_until_the_item_is_encoded():
    waiting = WaitingItems(budget=1, width=2, most_moved=1000)
    add(waiting, [1, 2], [0.3, 0.2])
    for _ in range(3):
        add(waiting, [2], [0.1])
    assert chosen(waiting) == [2]
    waiting.remove(np.array([2]))
    add(waiting, [2], [0.1])
    assert chosen(waiting) == [1], "what had moved before it was encoded no longer counts"


def test_an_item_that_did_not_move_does_not_wait_and_an_encoded_one_no_longer_does():
    waiting = WaitingItems(budget=5, width=2, most_moved=1000)
    add(waiting, [1, 2, 3], [0.0, 0.5, 0.5])
    waiting.remove(np.array([2, 77]))
    assert (chosen(waiting), len(waiting)) == ([3], 1)


def test_chosen_items_come_with_their_present_categories():
    waiting = WaitingItems(budget=5, width=2, most_moved=1000)
    add(waiting, [4, 7], [0.5, 0.1])
    ids, category_NK = waiting.choose()
    assert category_NK.tolist() == [[item * 10, 0] for item in ids.tolist()]


def test_the_number_that_wait_is_bounded_and_the_best_stay():
    waiting = WaitingItems(budget=10, width=2, most_moved=1000)
    for first in range(0, 4000, 100):
        ids = np.arange(first, first + 100)
        add(waiting, ids, 1.0 + ids)
        assert len(waiting) <= 16 * 10 + 100
    assert chosen(waiting) == list(range(3990, 4000))


def test_items_that_moved_are_a_bounded_share_of_a_version_and_new_ones_are_not():
    waiting = WaitingItems(budget=5, width=2, most_moved=2)
    add(waiting, [1, 2, 3], [0.3, 0.2, 0.1])
    assert chosen(waiting) == [1, 2]
    waiting.encoded(np.array([1, 2]))
    add(waiting, [2], [0.1])
    add(waiting, [8], [0.0], fresh=[True])
    assert chosen(waiting) == [2, 8], "3 would be a third one that moved"
