import numpy as np

from retrieval.indexes.exclusions import NO_EXCLUSIONS, Exclusions

IDS = np.array([[7, 3, 5, 9], [1, 2, 8, -1]])
SCORES = np.array([[4, 3, 2, 1], [4, 3, 2, -np.inf]], np.float32)


def test_the_first_results_that_are_not_excluded_are_kept_in_order():
    exclusions = Exclusions.of([np.array([9, 3, 3, 100, 3]), np.array([], np.int64)])
    assert exclusions.longest == 3
    ids, scores = exclusions.first_kept(IDS, SCORES, 2)
    assert ids.tolist() == [[7, 5], [1, 2]]
    assert scores.tolist() == [[4, 2], [4, 3]]


def test_what_is_missing_is_padded_with_or_without_exclusions():
    exclusions = Exclusions.of([np.array([3]), np.array([8, 1])])
    ids, scores = exclusions.first_kept(IDS, SCORES, 5)
    assert ids.tolist() == [[7, 5, 9, -1, -1], [2, -1, -1, -1, -1]]
    assert np.isneginf(scores).tolist() == (ids == -1).tolist()
    ids, _ = NO_EXCLUSIONS.first_kept(IDS, SCORES, 5)
    assert ids.tolist() == [[7, 3, 5, 9, -1], [1, 2, 8, -1, -1]]


def test_the_item_minus_one_is_kept_or_excluded_like_any_other():
    ids, scores = np.array([[-1, 4]]), np.array([[2, 1]], np.float32)
    assert NO_EXCLUSIONS.first_kept(ids, scores, 1)[0].tolist() == [[-1]]
    assert Exclusions.of([np.array([-1])]).first_kept(ids, scores, 2)[0].tolist() == [[4, -1]]


def test_of_some_queries_their_own_exclusions_remain():
    exclusions = Exclusions.of([np.array([3]), np.array([1, 2])]).of_queries(np.array([0]))
    assert (len(exclusions.ids), exclusions.longest) == (1, 1)
    assert exclusions.first_kept(IDS[:1], SCORES[:1], 1)[0].tolist() == [[7]]
