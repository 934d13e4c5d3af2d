"""Streaming counts against a batch recount, and through a checkpoint."""

import numpy as np
import pytest

from model.baselines.cooccurrence import StreamingCooccurrence
from model.baselines.popularity import StreamingPopularity


def _events(seed, count=300, items=40):
    rng = np.random.default_rng(seed)
    target, recent = rng.integers(0, items, count), rng.integers(-1, items, (count, 4))
    return target, recent


def test_popularity_is_the_count_of_each_item_so_far():
    target, recent = _events(0)
    popularity = StreamingPopularity()
    for part in np.split(np.arange(300), 6):
        popularity.update(target[part], recent[part])
    want = np.bincount(target, minlength=50).astype(np.float32)
    np.testing.assert_array_equal(popularity.scores(recent[:2], 50), np.stack([want, want]))
    np.testing.assert_array_equal(popularity.scores(recent[:2], 10), np.stack([want, want])[:, :10])


def test_cooccurrence_scores_are_normalised_counts_of_a_recount():
    target, recent = _events(1)
    model = StreamingCooccurrence()
    for part in np.split(np.arange(300), 5):
        model.update(target[part], recent[part])
    count = np.zeros((40, 40))
    for t, row in zip(target, recent, strict=True):
        for r in row[(row >= 0) & (row != t)]:
            count[t, r] += 1
            count[r, t] += 1
    norm = 1 / np.sqrt(count.sum(1))
    want = np.stack([(count[row[row >= 0]] * norm[row[row >= 0], None]).sum(0) * norm for row in recent])
    np.testing.assert_allclose(model.scores(recent, 40), want, rtol=1e-4)
    np.testing.assert_allclose(model.scores(recent, 15), want[:, :15], rtol=1e-4)


def test_popularity_goes_on_from_a_checkpoint_as_if_it_had_never_stopped():
    target, recent = _events(2)
    straight, resumed = StreamingPopularity(), StreamingPopularity()
    straight.update(target[:150], recent[:150])
    resumed.load_arrays(straight.to_arrays())
    for model in (straight, resumed):
        model.update(target[150:] + 300, recent[150:] + 300)
    np.testing.assert_array_equal(straight.scores(recent, 340), resumed.scores(recent, 340))


def test_cooccurrence_goes_on_from_its_pairs_and_what_changed_since_as_if_it_had_never_stopped():
    target, recent = _events(2)
    straight, resumed = StreamingCooccurrence(), StreamingCooccurrence()
    for first in (0, 50, 100):
        straight.update(target[first : first + 50], recent[first : first + 50])
        resumed.pairs.put(straight.pairs.take_changes() if first else straight.pairs.pairs())
    resumed.items = straight.items
    for model in (straight, resumed):
        model.update(target[150:] + 300, recent[150:] + 300)
    np.testing.assert_array_equal(straight.scores(recent, 340), resumed.scores(recent, 340))
    assert len(straight.pairs) == len(resumed.pairs)


@pytest.mark.parametrize("kind", [StreamingPopularity, StreamingCooccurrence])
def test_before_the_first_event_every_score_is_zero(kind):
    scores = kind().scores(np.full((2, 20), -1), 5)
    assert scores.shape == (2, 5)
    assert scores.dtype == np.float32
    assert not scores.any()
