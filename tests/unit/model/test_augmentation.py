"""Keyed randomness: the numbers, and that they depend only on the key."""

import numpy as np
import torch

from model.augmentation import (
    DROPOUT_VIEW,
    RandomKey,
    kept_fields,
    kept_item_fields,
    masked_tokens,
    view_factors,
)
from model.token_rows import pack
from tests.support.reference_model import keyed_uniform


def test_uniform_numbers_are_those_of_splitmix_in_python_integers():
    entities = torch.tensor([0, 1, -5, 2**62, -(2**63)])
    positions = torch.tensor([[0], [3], [10**12]])
    got = RandomKey(-7, 12345).uniform(16, entities, positions)
    want = [[keyed_uniform(-7, 12345, 16, e, p) for e in entities.tolist()] for p in positions[:, 0].tolist()]
    np.testing.assert_array_equal(got.numpy(), np.array(want, np.float32))


def test_uniform_numbers_are_uniform_and_differ_by_seed_step_salt_entity_and_position():
    entities, positions = torch.arange(500).unsqueeze(1), torch.arange(200)
    base = RandomKey(1, 1).uniform(1, entities, positions)
    assert abs(float(base.mean()) - 0.5) < 0.005
    assert abs(float((base < 0.3).float().mean()) - 0.3) < 0.005
    for other in (
        RandomKey(2, 1).uniform(1, entities, positions),
        RandomKey(1, 2).uniform(1, entities, positions),
        RandomKey(1, 1).uniform(2, entities, positions),
        base.roll(1, 0),
        base.roll(1, 1),
    ):
        assert abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.02


def test_a_mask_hides_tokens_below_the_ratio_and_leaves_each_sequence_one_wherever_it_stands():
    generator = np.random.default_rng(0)
    length_N = generator.integers(0, 6, 200)
    rows = pack(np.ones(length_N.sum(), np.int64), length_N)
    uniform = torch.from_numpy(generator.random(rows.token_RL.shape, np.float32))
    hidden = masked_tokens(uniform, rows.sequence_RL, 200, 0.95)
    assert rows.shared
    assert not bool(hidden[rows.sequence_RL < 0].any())
    for n in range(200):
        own = uniform[rows.sequence_RL == n]
        want = [float(u) < 0.95 and u < own.max() for u in own]
        assert hidden[rows.sequence_RL == n].tolist() == want
        assert len(want) == length_N[n]
        assert sum(want) < length_N[n] or length_N[n] == 0
    assert bool(hidden.any())


def test_a_mask_of_no_sequences_hides_nothing():
    rows = pack(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (
        masked_tokens(torch.rand(rows.token_RL.shape), rows.sequence_RL, 0, 0.5).shape == rows.token_RL.shape
    )


def test_a_user_view_keeps_at_least_one_attribute():
    kept = kept_fields(torch.rand(300, 3, generator=torch.Generator().manual_seed(0)), 0.9)
    assert int(kept.sum(1).min()) == 1


def test_an_item_view_hides_id_or_categories_with_the_given_chance_and_never_both():
    keep_id, keep_category = kept_item_fields(torch.arange(1000) / 1000, 0.3)
    assert (~keep_id).sum() == 150
    assert (~keep_category).sum() == 150
    assert bool((keep_id | keep_category).all())


def _dropped(entity, fields, dim, ratio, kept=None):
    start = RandomKey(3, 4).dropout_starts(2, entity, fields, dim)
    kept = torch.ones(start.shape, dtype=torch.bool) if kept is None else kept
    return view_factors(start.flatten(), kept.flatten(), dim, ratio).view(entity.shape[0], fields * dim)


def test_keyed_dropout_follows_the_entity_and_not_its_place_and_keeps_the_mean():
    entity = torch.arange(400)
    dropped = _dropped(entity, 2, 32, 0.3)
    assert torch.equal(_dropped(entity.flip(0), 2, 32, 0.3).flip(0), dropped)
    assert abs(float(dropped.mean()) - 1.0) < 0.02
    assert torch.allclose(dropped[dropped > 0], torch.tensor(1 / 0.7))
    assert bool((_dropped(entity, 2, 32, 0.0) == 1.0).all())


def test_keyed_dropout_is_of_the_keyed_numbers_and_of_the_fields_that_are_kept():
    entity, kept = torch.arange(-20, 20), torch.arange(80).view(40, 2) % 3 > 0
    uniform = RandomKey(3, 4).uniform(DROPOUT_VIEW + 2, entity.unsqueeze(1), torch.arange(10))
    want = (uniform >= 0.4) & kept.repeat_interleave(5, dim=1)
    assert torch.equal(_dropped(entity, 2, 5, 0.4, kept) > 0, want)
